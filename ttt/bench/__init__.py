"""Timings that can be repeated: the work, the clock and the tables of `ttt bench`."""
