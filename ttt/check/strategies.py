"""What a training strategy owes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from ttt.check import world
from ttt.check.core import Broken, NotSaid, need, prop
from ttt.interfaces import Strategy
from ttt.types import Kind, PackedBatch, TokenStream, audio_runs

ARRAYS = ("ids", "kind", "run_id", "target", "noisable")
SEEDS = range(6)


def _maskable(batch: PackedBatch) -> Tensor:
    return (batch.kind == Kind.AUDIO) & batch.noisable & batch.visible


def _streams() -> list[TokenStream]:
    return world.streams(3, 15, most=25)


def _both(strategy: Strategy) -> Iterator[Strategy]:
    """The strategy as it is, and certain to act."""
    yield strategy
    if any(f.name == "p" for f in fields(strategy)):  # type: ignore[arg-type]
        yield replace(strategy, p=1.0)  # type: ignore[type-var]


def _same_stream(a: TokenStream, b: TokenStream) -> str:
    """Name of the first array that differs, or nothing."""
    return next((n for n in ARRAYS if not np.array_equal(getattr(a, n), getattr(b, n))), "") or (
        "segments" if a.segments != b.segments else ""
    )


@prop("strategy", "deterministic", "the same generator gives the same result")
def _deterministic(strategy: Strategy) -> None:
    for s in _both(strategy):
        for seed, stream in enumerate(_streams()):
            one, two = (s.on_stream(stream, np.random.default_rng(seed)) for _ in range(2))
            name = _same_stream(one, two)
            need(not name, f"on_stream gives two different {name} for example {stream.uid!r} and generator seed {seed}")
        for seed in SEEDS:
            batch = world.batch(seed)
            first, second = (s.on_maskable(batch, _maskable(batch), world.gen(seed)) for _ in range(2))
            at = (first != second).nonzero()
            need(not len(at), f"on_maskable differs at {at[:1].tolist()} for generator seed {seed}")


@prop("strategy", "input", "the example and the batch it is handed stay as they are")
def _input(strategy: Strategy) -> None:
    for s in _both(strategy):
        for seed, stream in enumerate(_streams()):
            kept = copy.deepcopy(stream)
            s.on_stream(stream, np.random.default_rng(seed))
            name = _same_stream(stream, kept)
            need(not name, f"on_stream changed the {name} of example {stream.uid!r}, which others use too")
        for seed in SEEDS:
            batch = world.batch(seed)
            maskable = _maskable(batch)
            before, kept_batch = maskable.clone(), copy.deepcopy(batch)
            s.on_maskable(batch, maskable, world.gen(seed))
            need(torch.equal(maskable, before), "on_maskable wrote into the tensor `maskable` it was handed")
            for f in fields(PackedBatch):
                a, b = getattr(batch, f.name), getattr(kept_batch, f.name)
                need(torch.equal(a, b) if isinstance(a, Tensor) else a == b, f"on_maskable changed batch.{f.name}")


@prop("strategy", "growth", "an example grows by no more than `growth` says")
def _growth(strategy: Strategy) -> None:
    for s in _both(strategy):
        for stream in _streams():
            room = s.growth(stream)
            for seed in range(20):
                out = s.on_stream(stream, np.random.default_rng(seed))
                need(
                    len(out) <= len(stream) + room,
                    f"example {stream.uid!r} grew from {len(stream)} to {len(out)} tokens (seed {seed}), growth says {room}",
                )
                for less in {0, room // 2} if room else ():
                    short = s.limited(stream, less).on_stream(stream, np.random.default_rng(seed))
                    need(
                        len(short) <= len(stream) + less,
                        f"example {stream.uid!r} grew by {len(short) - len(stream)} tokens where `limited` has room for {less}",
                    )


@prop("strategy", "canvas", "what shapes the canvas acts on examples alone, so that validation can apply it")
def _canvas(strategy: Strategy) -> None:
    if not strategy.shapes_canvas:
        raise NotSaid("the strategy does not shape the canvas")
    for hook in ("on_batch", "on_maskable"):
        inherited = getattr(type(strategy), hook) is getattr(Strategy, hook)
        need(inherited, f"shapes_canvas is set, but {hook} is overridden, which validation does not call")


@prop("strategy", "consistent", "kinds, runs, targets and segments of a changed example fit its ids")
def _consistent(strategy: Strategy) -> None:
    vocab = world.tokenizer().vocab
    for s in _both(strategy):
        for seed, stream in enumerate(_streams()):
            out = s.on_stream(stream, np.random.default_rng(seed))
            where = f"example {stream.uid!r}, seed {seed}: "
            wrong = np.flatnonzero((out.kind == Kind.AUDIO) != vocab.is_audio(out.ids))
            for at in wrong.tolist()[:1]:
                raise Broken(f"{where}kind and id disagree at position {at}")
            need(np.array_equal(out.run_id, audio_runs(out.kind)), f"{where}audio runs are not those of the kinds")
            need(not (out.noisable & ~out.target).any(), f"{where}something may be noised that carries no loss")
            need(len(out) > 0, f"{where}nothing is left")
            for segment in out.segments:
                inside = 0 <= segment.start <= segment.stop <= segment.turn_stop <= len(out)
                need(inside, f"{where}segment {segment} lies outside the {len(out)} tokens")
                kinds = out.kind[segment.start : segment.stop]
                need((kinds == Kind.AUDIO).all(), f"{where}segment {segment} holds text")


@prop("strategy", "maskable", "nothing becomes maskable that was not")
def _only_less(strategy: Strategy) -> None:
    for s in _both(strategy):
        for seed in SEEDS:
            batch = world.batch(seed)
            maskable = _maskable(batch)
            after = s.on_maskable(batch, maskable.clone(), world.gen(seed))
            need(
                after.dtype == torch.bool and after.shape == maskable.shape,
                f"on_maskable gives {after.dtype} {list(after.shape)}, not bool {list(maskable.shape)}",
            )
            for row, at in (after & ~maskable).nonzero().tolist()[:1]:
                raise Broken(f"seed {seed}: row {row} position {at} was not maskable before")
        quiet = world.quiet_batch()
        after = s.on_maskable(quiet, torch.zeros_like(quiet.noisable), world.gen())
        need(not after.any(), "a batch without audio has maskable positions afterwards")


@prop("strategy", "off", "with p = 0 it does nothing, p outside [0, 1] is refused")
def _off(strategy: Strategy) -> None:
    if not any(f.name == "p" for f in fields(strategy)):  # type: ignore[arg-type]
        raise NotSaid("the strategy has no probability p")
    never = replace(strategy, p=0.0)  # type: ignore[type-var]
    for seed, stream in enumerate(_streams()):
        name = _same_stream(stream, never.on_stream(stream, np.random.default_rng(seed)))
        need(not name, f"with p = 0 it still changes the {name} of example {stream.uid!r}")
    batch = world.batch()
    after = never.on_maskable(batch, _maskable(batch), world.gen())
    need(torch.equal(after, _maskable(batch)), "with p = 0 it still changes what is maskable")
    for p in (-0.1, 1.1):
        try:
            replace(strategy, p=p)  # type: ignore[type-var]
        except ValueError:
            continue
        need(False, f"p = {p} is accepted")
