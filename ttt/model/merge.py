"""Adapters merged into their base, and models exported with adapters merged on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ttt.errors import CheckpointError, ConfigError
from ttt.io.atomic import temporary_name
from ttt.model.lora import is_adapter, load_merged, read_record
from ttt.model.official import DTYPES, check_out, export, written_aside
from ttt.model.reading import KEY, MEND, note_attention, objective_of, reading_of, write_readme

_OFFICIAL_KEYS = {"unmasked_audio_prob": "banom", "prefix_preservation_ratio": "ppm"}  # key -> strategy


def merge(source: Path, out: Path, dtype: str = "", base: str = "", overwrite: bool = False) -> None:
    """Adapters and new rows of ``source`` into their base: a whole model folder ``out``.

    ``dtype``: float32 (default), bfloat16 or float16; ``base``: where the base is now, when it has moved.
    """
    if not is_adapter(source):
        raise CheckpointError(f"{source}: no adapters here (adapter.json is missing): nothing to merge")
    if dtype not in ("", *DTYPES):
        raise ConfigError(f"--dtype: no {dtype!r}. Known: {', '.join(DTYPES)}")
    sources = [source, *([Path(base)] if base else [Path(read_record(source)["base"])])]
    with written_aside(out, overwrite, sources) as partial:
        # Merged in float32, rounded once: a low-rank update is finer than bfloat16.
        whole = load_merged(source, base=base)
        reading = reading_of(source, {})
        if reading:
            note_attention(whole.hf.config, reading["mask"])
            setattr(whole.hf.config, KEY, {**reading, "mask_token_id": whole.tokenizer.vocab.mask_id})
        whole.to(getattr(torch, dtype or "float32")).save(partial)
        if reading:
            write_readme(partial, reading)


def export_any(source: Path, out: Path, layout: str, dtype: str = "", base: str = "", overwrite: bool = False) -> None:
    """`ttt.model.official.export` of a whole model, or of adapters merged on the way."""
    probabilities = strategy_probabilities(source)
    if not is_adapter(source):
        export(source, out, layout, dtype, probabilities, overwrite)
        return
    check_out(out, overwrite, [source, *([Path(base)] if base else [])])
    whole = temporary_name(out)
    try:
        merge(source, whole, base=base)
        export(whole, out, layout, dtype, probabilities, overwrite)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def strategy_probabilities(folder: Path) -> dict[str, float]:
    """The official keys of a checkpoint's own recipe (``config.yaml`` beside ``model/``); nothing without one."""
    recipe = folder.parent / "config.yaml"
    if not recipe.is_file():
        return {}
    strategies = objective_of(folder).get("strategies")
    share: dict[str, float] = {}
    for strategy in strategies if isinstance(strategies, list) else []:
        if isinstance(strategy, dict) and isinstance(strategy.get("name"), str):
            p = strategy.get("p", 0.0)
            if isinstance(p, bool) or not isinstance(p, int | float):
                raise CheckpointError(f"{recipe}: objective.strategies: p must be a number, got {p!r}; {MEND}")
            share[strategy["name"]] = float(p)
    return {key: share.get(name, 0.0) for key, name in _OFFICIAL_KEYS.items()}
