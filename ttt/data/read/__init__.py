"""Files -> records -> examples."""
