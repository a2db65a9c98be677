"""VALL-E on codebooks: an autoregressive decoder for the first codebook, a non-autoregressive one for the others."""
