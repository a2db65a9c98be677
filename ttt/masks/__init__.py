"""Attention masks: rules (library.py), their form for each attention implementation (materialize.py, segments.py), drawing."""
