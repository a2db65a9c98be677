"""What is in data files: checks, duplicates, lengths, single examples."""
