"""What a model folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt.errors import DataError
from ttt.model.lora import RECORD, is_adapter, read_record
from ttt.model.official import KEYS, read_config, weight_files, weight_shapes
from ttt.model.shape import meta_model, parameter_counts, read_hf_config
from ttt.text.tokenizer import TextTokenizer


def facts(folder: Path) -> dict[str, Any]:
    """What a model folder holds, read from its small files and headers."""
    config = read_config(folder)
    names = config.get("architectures")
    stored = weight_shapes(folder)
    hf_config = read_hf_config(folder)
    rope = dict(getattr(hf_config, "rope_parameters", None) or {})
    contents: dict[str, Any] = {
        "folder": str(folder),
        "architecture": str(names[0]) if isinstance(names, list) and names else "?",
        "layers": hf_config.num_hidden_layers, "width": hf_config.hidden_size, "tied": bool(hf_config.tie_word_embeddings),
        "rope": rope, "parameters": parameter_counts(meta_model(hf_config)),
        "stored_types": sorted({t for _, t in stored.values()}), "files": len(weight_files(folder)),
        "bytes": sum(p.stat().st_size for p in weight_files(folder)),
    }  # fmt: skip
    contents["parameters"]["all"] = sum(contents["parameters"].values())
    official = {k: config[k] for k in KEYS if k in config}
    if official:
        contents["official"] = official
    if is_adapter(folder):
        record = read_record(folder)
        contents["adapter"] = {
            k: record[k] for k in ("base", "rank", "alpha", "targets", "quantize", "first_new", "rows")
        }
        contents["adapter"]["record"] = RECORD
    if (folder / "tokenizer.json").is_file():
        contents["table_rows"] = int(hf_config.vocab_size)
        try:
            vocab = TextTokenizer.load(folder).vocab
        except DataError:  # a text backbone
            contents["vocabulary"] = "no audio tokens"
        else:
            contents["vocabulary"] = {
                "size": vocab.size, "audio_start": vocab.audio_start, "codes": vocab.num_codes, "mask": vocab.mask_id,
                "digest": vocab.digest,
            }  # fmt: skip
    return contents


def as_text(contents: Mapping[str, Any]) -> str:
    """`facts` for people: one line a fact, nested ones indented."""
    lines = []
    for key, value in contents.items():
        if isinstance(value, dict):
            lines.append(key)
            lines += [f"  {k:<26} {v:,}" if isinstance(v, int) else f"  {k:<26} {v}" for k, v in value.items()]
        else:
            counted = isinstance(value, int) and not isinstance(value, bool)
            lines.append(f"{key:<28} {value:,}" if counted else f"{key:<28} {value}")
    return "\n".join(lines)
