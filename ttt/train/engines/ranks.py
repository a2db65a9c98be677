"""The processes of one run, and the small values that they exchange on the CPU: counts, decisions, failures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch

from ttt.errors import ConfigError, TttError
from ttt.io.devices import existing_gpu
from ttt.io.provenance import whole_number


class RankLostError(TttError):
    """Another process of this run is gone, or does not answer."""


class PeerFailedError(TttError):
    """Another process of the same run failed; this one has no error of its own."""

    quiet = True  # the one that failed prints it


def world() -> tuple[int, int]:
    """(rank, number of ranks) as told by torchrun or the deepspeed launcher; (0, 1) without one."""
    rank, size = whole_number("RANK", 0, 0), whole_number("WORLD_SIZE", 1, 1)
    if rank >= size:
        raise ConfigError(
            f"environment: RANK={rank} must be below WORLD_SIZE={size}; start with torchrun, or unset both"
        )
    return rank, size


def pick_device(name: str) -> torch.device:
    """``run.device`` as torch's: ``auto`` and ``cuda`` are this rank's GPU; without one ``auto`` is the CPU.

    Raises `ConfigError` for a GPU that torch does not see.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    rank, size = world()
    _, _, number = name.partition(":")
    if number and size > 1:
        raise ConfigError(f"run.device: {name} is one GPU, and this run has {size} ranks; use run.device=cuda")
    device = torch.device("cuda", existing_gpu(name, int(number) if number else whole_number("LOCAL_RANK", 0, 0)))
    torch.cuda.set_device(device)
    return device


def check_trainable(attention: str, device: str, dtype: str = "float32", autocast: str = "none") -> None:
    """Refuse ``model.attention`` on a device where its backward pass does not exist, and weights that float16 cannot train."""
    if dtype == "float16":
        raise ConfigError(
            "model.dtype: weights in float16 lose small updates, so they are not trained; use float32 or bfloat16"
        )
    if autocast == "float16" and dtype != "float32":
        raise ConfigError(f"train.autocast: float16 needs weights in float32, model.dtype is {dtype}; make one of them fit")
    if attention == "flex_attention" and (device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError(
            "model.attention: flex_attention trains on a GPU only, and this run is on the CPU; use model.attention=auto"
        )


class Ranks:
    """The group of processes.  With one process every call answers at once.

    ``timeout_s``: how long a rank waits for the others before it gives up.  ``always``: make a group even for one process.
    """

    def __init__(self, device: torch.device, timeout_s: float, always: bool = False) -> None:
        self.rank, self.size = world()
        self._control: Any = None
        self._owns_group = False
        if self.size == 1 and not always:
            return
        import torch.distributed as dist

        patience = timedelta(seconds=timeout_s)
        if not dist.is_initialized():
            alone = {} if self.size > 1 else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience, **alone)  # type: ignore[arg-type]
            self._owns_group = True
        self._control = dist.new_group(backend="gloo", timeout=patience)  # counts and logs travel on the CPU

    def all_gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum by name, in rank order, so that every rank rounds alike; a name that a rank lacks counts as 0 there."""
        if self.size == 1:
            return dict(values)
        total: dict[str, float] = {}
        for part in self.all_gather(dict(values)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier(group=self._control)

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """A block that succeeds on every rank or on none: a rank that succeeded raises `PeerFailedError` when another failed.

        The first rank that failed raises its own error, so one message is printed and no rank waits for one that has ended.
        """
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if is_lost_rank(error):  # nobody is left to talk to
                raise
            failure = error
        failures = self.all_gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        first = next((rank for rank, message in enumerate(failures) if message is not None), None)
        if first == self.rank:
            assert failure is not None
            raise failure
        if first is not None:
            raise PeerFailedError(f"rank {first} failed: {failures[first]}") from failure

    def close(self) -> None:
        """Leave the group, if this object made it."""
        if self._owns_group:
            import torch.distributed as dist

            dist.destroy_process_group()
            self._owns_group = False


def is_lost_rank(error: BaseException) -> bool:
    """Does this error mean that another process is gone or stuck?"""
    import torch.distributed as dist

    if not isinstance(error, RuntimeError):
        return False
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    # gloo reports a closed or silent connection as a plain RuntimeError that names its own source file.
    text = str(error)
    return "gloo" in text or "Connection closed by peer" in text or "Connection reset by peer" in text


def lost_rank_message(error: BaseException, rank: int, step: int, last: str) -> str:
    """One line for `RankLostError`; ``last``: the checkpoint a new start goes on from."""
    why = " ".join(str(error).split())
    return (
        f"step {step + 1}: another process of this run is gone or does not answer (rank {rank} saw: {why[:200]}); "
        f"look for the first error of the other ranks; the same command goes on from {last}"
    )
