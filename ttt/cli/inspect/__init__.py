"""Look into a trained model."""

VERBS = ("attention", "samplers")
