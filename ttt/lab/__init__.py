"""Tables of experiments: cells, trainings, table files, comparison of seeds."""
