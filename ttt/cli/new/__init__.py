"""Write something to start from."""

VERBS = ("recipe", "plugin")
