"""Samplers: how a span or an answer is filled, given a function that returns logits."""
