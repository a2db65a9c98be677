"""Which device a name of the configuration stands for."""

from __future__ import annotations

from ttt.errors import ConfigError
from ttt.io.provenance import whole_number


def pick_device(name: str, key: str = "run.device") -> str:
    """The device ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as torch names it; ``cuda`` is this process's own GPU.

    ``auto``: the GPU if torch sees one.  ``key``: the configuration key, named in the `ConfigError` for a GPU that is not there.
    """
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    _, _, number = name.partition(":")
    return f"cuda:{existing_gpu(name, int(number) if number else whole_number('LOCAL_RANK', 0, 0), key)}"


def existing_gpu(name: str, index: int, key: str = "run.device") -> int:
    """``index``, if torch sees a GPU of that number; ``name``: the value of ``key``, for the message of the `ConfigError`."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"{key}: {name} asked for, but torch sees no GPU; use {key}=cpu")
    if index >= torch.cuda.device_count():
        raise ConfigError(f"{key}: {name} is GPU {index} here, but torch sees {torch.cuda.device_count()}, counted from 0")
    return index
