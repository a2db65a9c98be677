"""ttt: speech and text language models with autoregressive text and diffusion audio.

``ttt.load(run)`` opens a trained model (`ttt.api`); nothing heavy is imported before that.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttt.api import Answer as Answer
    from ttt.api import Model as Model
    from ttt.api import load as load

__version__ = "0.1.0"
_API = ("Answer", "Model", "load")


def __getattr__(name: str) -> Any:
    if name in _API:
        import ttt.api

        return getattr(ttt.api, name)
    raise AttributeError(f"module 'ttt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
