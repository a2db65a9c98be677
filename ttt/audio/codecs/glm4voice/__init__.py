"""GLM-4-Voice's speech tokens (arXiv 2412.02612): 16 kHz sound to tokens, tokens to 22,050 Hz sound."""
