"""The decoder: rows of text and audio, the session that runs the model for them, streaming."""
