"""Importing this package registers its plug-ins; the entry point in setup.py has `ttt` import it."""

from ttt_example import archs, masks, noise, samplers, tasks

__all__ = ["archs", "masks", "noise", "samplers", "tasks"]
