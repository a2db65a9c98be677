"""Masked (absorbing) diffusion: schedules, weightings, masking rates, noise, training strategies, constraints."""
