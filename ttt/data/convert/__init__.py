"""Converters: data of other projects and standard corpora -> examples or corpus folders."""
