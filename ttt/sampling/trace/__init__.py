"""Traces: what a decoder did at each network call, recorded, and as pictures."""
