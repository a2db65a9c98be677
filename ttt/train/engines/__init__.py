"""Where the network runs: one module per engine.  `build_engine` makes the one that ``train.engine`` names."""

from __future__ import annotations

from torch import nn

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError
from ttt.train.engines.base import Engine, load_weights
from ttt.train.engines.local import LocalEngine
from ttt.train.engines.ranks import PeerFailedError, RankLostError, check_trainable, pick_device, world

__all__ = [
    "Engine", "PeerFailedError", "LocalEngine", "RankLostError", "build_engine", "check_engine", "check_trainable",
    "load_weights", "pick_device", "world",
]  # fmt: skip

DEEPSPEED_ONLY = {"zero_stage": 0, "deepspeed": "", "offload": []}


def check_engine(train: TrainSection) -> None:
    """Refuse an engine, or settings of one, that cannot run; cheap, before anything heavy starts."""
    if train.engine == "deepspeed":
        from ttt.train.engines.deepspeed_config import check_deepspeed

        check_deepspeed(train)
        return
    for key, off in DEEPSPEED_ONLY.items():
        if getattr(train, key) != off:
            raise ConfigError(
                f"train.{key}: {getattr(train, key)!r} needs train.engine=deepspeed, the recipe has {train.engine!r}"
            )


def build_engine(model: nn.Module, train: TrainSection, device: str = "auto") -> Engine:
    """The engine named by ``train.engine``."""
    check_engine(train)
    if train.engine == "deepspeed":
        from ttt.train.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(model, train, device)
    return LocalEngine(model, train, device)
