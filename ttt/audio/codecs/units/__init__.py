"""Units: the nearest of K centroids to a hidden state of a published speech encoder, as in GSLM, TWIST and slamkit."""
