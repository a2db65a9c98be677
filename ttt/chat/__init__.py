"""Conversation with a model in a terminal."""
