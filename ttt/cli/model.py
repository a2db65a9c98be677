"""The verb ``model``: folders in and out, adapters merged, and what a folder holds."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def model(arguments: argparse.Namespace) -> int:
    """``init`` | ``import`` | ``export`` | ``merge`` | ``text`` | ``show``."""
    if arguments.action == "init":
        return init(arguments)
    if arguments.overrides:
        raise ConfigError(f"ttt model {arguments.action}: takes no settings, got {arguments.overrides[0]!r}")
    source = resolve(arguments.source)
    if arguments.action == "show":
        print(json.dumps(facts(source), indent=1) if arguments.json else "\n".join(lines(facts(source))))
        return 0
    if not arguments.out:
        raise ConfigError(f"ttt model {arguments.action}: missing OUT, the folder to write")
    out = Path(arguments.out)
    if out.resolve() == source.resolve():
        raise ConfigError(f"{out}: is the source; name another folder, so that it stays as it was")
    if arguments.action == "import":
        from ttt.model.official import import_official

        vocab = import_official(source, out, arguments.overwrite).vocab
        log.info("model: %s -> %s: %d ids, %d codes, mask %d", source, out, vocab.size, vocab.num_codes, vocab.mask_id)
        return 0
    from ttt.model.lora import is_adapter

    if arguments.action == "text":
        from ttt.model.official import written_aside
        from ttt.model.text_only import save_text_model

        with written_aside(out, arguments.overwrite) as partial:
            kept = save_text_model(source, partial)
        log.info("model: %s -> %s: %d text tokens", source, out, kept)
        return 0
    if arguments.action == "merge":
        if not is_adapter(source):
            raise CheckpointError(f"{source}: no adapters here (adapter.json is missing): nothing to merge")
        merge(source, out, arguments)
    else:
        export_folder(source, out, arguments)
    log.info("model: %s -> %s", source, out)
    return 0


def init(arguments: argparse.Namespace) -> int:
    """Write the model that a recipe's training would start from, untrained: a baseline, or a look at its new rows."""
    from ttt.api import start_model
    from ttt.cli.common import configure
    from ttt.model.official import written_aside
    from ttt.text.tokenizer import TextTokenizer

    if not arguments.out:
        raise ConfigError("ttt model init: missing OUT, the folder to write")
    out = Path(arguments.out)
    arguments.config = [arguments.source]
    config = configure(arguments, ("data.tokenizer",))
    tokenizer = TextTokenizer.load(config.data.tokenizer)
    codec = config.codec.load() if config.codec is not None else None
    model = start_model(config, tokenizer, codec)
    with written_aside(out, arguments.overwrite) as partial:
        model.save(partial)
    log.info("model: %s -> %s: %d ids, seed %d", arguments.source, out, tokenizer.vocab.size, config.run.seed)
    return 0


def merge(source: Path, out: Path, arguments: argparse.Namespace) -> None:
    """Adapters and new rows into their base: a whole model folder."""
    import torch

    from ttt.model.lora import load_merged
    from ttt.model.official import DTYPES, written_aside

    dtype = arguments.dtype or "float32"
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: no {dtype!r}. Known: {', '.join(DTYPES)}")
    with written_aside(out, arguments.overwrite) as partial:
        # Merged in float32, rounded once: a low-rank update is finer than bfloat16.
        whole = load_merged(source, base=arguments.base)
        whole.to(getattr(torch, dtype)).save(partial)


def export_folder(source: Path, out: Path, arguments: argparse.Namespace) -> None:
    """A whole model, or adapters merged on the way, for plain transformers or the official code."""
    import shutil

    from ttt.model.lora import is_adapter
    from ttt.model.official import export

    probabilities = strategy_probabilities(source)
    if not is_adapter(source):
        export(source, out, arguments.layout, arguments.dtype, probabilities, arguments.overwrite)
        return
    whole = out.with_name(f".{out.name}.merged")
    try:
        merge(source, whole, argparse.Namespace(dtype="", base=arguments.base, overwrite=True))
        export(whole, out, arguments.layout, arguments.dtype, probabilities, arguments.overwrite)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def resolve(path: str) -> Path:
    """A model folder: named itself, or the latest of a run or checkpoint."""
    from ttt.api import model_folder

    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if list(folder.glob("config.json")) or list(folder.glob("*.safetensors")):
        return folder
    return model_folder(folder)


def strategy_probabilities(folder: Path) -> dict[str, float]:
    """The official keys of a checkpoint's own recipe (``config.yaml`` beside ``model/``); nothing without one."""
    import yaml

    recipe = folder.parent / "config.yaml"
    if not recipe.is_file():
        return {}
    listed = ((yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("objective") or {}).get("strategies") or []
    found = {s.get("name"): float(s.get("p", 0.0)) for s in listed if isinstance(s, dict)}
    keys = {"unmasked_audio_prob": "banom", "prefix_preservation_ratio": "ppm"}
    return {key: found.get(name, 0.0) for key, name in keys.items()}


def facts(folder: Path) -> dict[str, Any]:
    """What a model folder holds, read from its small files and headers."""
    from ttt.model.lora import RECORD, is_adapter, read_record
    from ttt.model.official import KEYS, read_config, weight_files, weight_shapes
    from ttt.model.shape import meta_model, parameter_counts, read_hf_config
    from ttt.text.tokenizer import TextTokenizer

    config = read_config(folder)
    stored = weight_shapes(folder)
    hf_config = read_hf_config(folder)
    rope = dict(getattr(hf_config, "rope_parameters", None) or {})
    found: dict[str, Any] = {
        "folder": str(folder),
        "architecture": (config.get("architectures") or ["?"])[0],
        "layers": hf_config.num_hidden_layers, "width": hf_config.hidden_size, "tied": bool(hf_config.tie_word_embeddings),
        "rope": rope, "parameters": parameter_counts(meta_model(hf_config)),
        "stored_types": sorted({t for _, t in stored.values()}), "files": len(weight_files(folder)),
        "bytes": sum(p.stat().st_size for p in weight_files(folder)),
    }  # fmt: skip
    found["parameters"]["all"] = sum(found["parameters"].values())
    official = {k: config[k] for k in KEYS if k in config}
    if official:
        found["official"] = official
    if is_adapter(folder):
        record = read_record(folder)
        found["adapter"] = {k: record[k] for k in ("base", "rank", "alpha", "targets", "quantize", "first_new", "rows")}
        found["adapter"]["record"] = RECORD
    if (folder / "tokenizer.json").is_file():
        found["table_rows"] = int(hf_config.vocab_size)
        try:
            vocab = TextTokenizer.load(folder).vocab
        except DataError:  # a text backbone
            found["vocabulary"] = "no audio tokens"
        else:
            found["vocabulary"] = {
                "size": vocab.size, "audio_start": vocab.audio_start, "codes": vocab.num_codes, "mask": vocab.mask_id,
                "digest": vocab.digest,
            }  # fmt: skip
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """`facts` for people: one line a fact, nested ones indented."""
    out = []
    for key, value in found.items():
        if isinstance(value, dict):
            out.append(key)
            out += [f"  {k:<26} {v:,}" if isinstance(v, int) else f"  {k:<26} {v}" for k, v in value.items()]
        else:
            out.append(
                f"{key:<28} {value:,}"
                if isinstance(value, int) and not isinstance(value, bool)
                else f"{key:<28} {value}"
            )
    return out
