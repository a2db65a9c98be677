"""Importing this package registers its plug-ins; the entry point in setup.py has `ttt` import it."""

from ttt_example import masks, noise, samplers, tasks

__all__ = ["masks", "noise", "samplers", "tasks"]
