"""Recording and drawing what a decoder did, call by call."""
