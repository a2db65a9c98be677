"""Samplers: how an audio span or a whole answer is filled, given its logits."""
