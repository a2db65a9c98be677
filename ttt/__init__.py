"""ttt: speech and text language models with autoregressive text and diffusion audio."""

__version__ = "0.1.0"
