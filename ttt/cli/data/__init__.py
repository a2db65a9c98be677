"""Prepare files of examples."""

VERBS = ("convert", "encode", "check", "split", "stats", "show", "pack")
