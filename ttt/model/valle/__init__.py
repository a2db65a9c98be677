"""VALL-E on code books: an autoregressive decoder for the first book, a non-autoregressive one for the others."""
