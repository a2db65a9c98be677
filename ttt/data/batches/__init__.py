"""Token streams -> batches, as a function of (seed, update, index, rank)."""
