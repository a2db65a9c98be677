"""Model folders in the layout of the official TtT code (`Qwen2ForARDiffLM`): read, checked and written as files.

The layout is Qwen2's with five keys of its own in ``config.json``; tensors have the same names, so they are copied, never
recomputed.  The official code runs on transformers 4, whose spelling of rotary settings and number types is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.errors import CheckpointError, ConfigError, DataError, suggest
from ttt.io.atomic import folder_aside, write_json
from ttt.io.json_input import read_json
from ttt.io.outputs import check_replaced_folder, holds_only, is_our_json
from ttt.model.backbone import check_folder
from ttt.model.reading import KEY, reading_of, write_readme
from ttt.model.shape import expected_weights
from ttt.text.tokenizer import TextTokenizer

ARCHITECTURE = "Qwen2ForARDiffLM"
PLAIN = "Qwen2ForCausalLM"
# What the official code assumes where a key is absent (`modeling_qwen_TtT.py`); mask_token has no default.
DEFAULTS = {
    "audio_token_id_start": 151684, "unmasked_audio_prob": 0.1, "prefix_preservation_ratio": 0.3, "learn_padding": False,
}  # fmt: skip
KEYS = ("mask_token", *DEFAULTS)
LAYOUTS = ("hf", "official")
DTYPES = ("float32", "bfloat16", "float16")
MADE = "made_by_ttt.json"  # in folders that 'ttt model' wrote: it may write them again
MODEL_FILES = (  # patterns of all names in a model folder
    r"(config|generation_config|tokenizer|tokenizer_config|vocab|adapter|special_tokens_map|made_by_ttt)\.json",
    r"[\w-]+\.safetensors(\.index\.json)?", r"chat_template\.jinja", r"README\.md",
)  # fmt: skip
INDEX = "model.safetensors.index.json"


def import_official(source: Path, out: Path, overwrite: bool = False) -> TextTokenizer:
    """``source`` in the official layout -> ``out``, a model folder of this toolkit (`ttt.model.causal_lm.load_lm`, ``model.path``).

    Tensors and further config keys stay as they are.  Raises `CheckpointError` / `DataError` naming the file for pickled,
    missing or superfluous weights, for another layout, and for ids that are not the tokenizer's.
    """
    check_folder(source)
    config = read_config(source)
    if ARCHITECTURE not in (config.get("architectures") or []) and "mask_token" not in config:
        raise CheckpointError(
            f"{source / 'config.json'}: architectures {config.get('architectures')} is not the official layout "
            f"({ARCHITECTURE}), and model_type {config.get('model_type')!r} is neither 'llada' nor 'Dream'; "
            "a text backbone needs no import, name it with model.path"
        )
    _qwen2(config, source)
    if not (source / "tokenizer.json").is_file():
        raise DataError(
            f"{source}: no tokenizer.json; write one with AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    tokenizer = TextTokenizer.load(source)
    vocab = tokenizer.vocab
    wanted = {"mask_token": vocab.mask_id, "audio_token_id_start": vocab.audio_start}
    for key, value in wanted.items():
        found = config.get(key, DEFAULTS.get(key))
        if found != value:
            raise CheckpointError(
                f"{source / 'config.json'}: {key} is {found}, the tokenizer beside it says {value}; they do not belong together"
            )
    check_weights(source)
    with written_aside(out, overwrite, [source]) as partial:
        copy_weights(source, partial)
        _write_config(partial, {**config, "architectures": [PLAIN]})
        _write_generation(source, partial, tokenizer)
        tokenizer.save(partial)
    return tokenizer


def export(
    source: Path, out: Path, layout: str = "hf", dtype: str = "", probabilities: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """A model folder of this toolkit -> ``out`` for plain transformers (``hf``) or for the official code (``official``).

    ``hf``: ``config.json`` (``is_causal``, ``ttt_reading``) and a README.md say which attention and logits the model was trained
    with, where its recipe is beside it.  ``dtype`` converts the weights (empty: as they are).  ``probabilities``: the official
    keys ``unmasked_audio_prob`` and ``prefix_preservation_ratio`` of the run; else what the folder says, else the official
    defaults.
    """
    for key, value, known in (("--layout", layout, LAYOUTS), ("--dtype", dtype, ("", *DTYPES))):
        if value not in known:
            raise ConfigError(f"{key}: no {value!r}.{suggest(value, known)} Known: {', '.join(k for k in known if k)}")
    check_folder(source)
    config, tokenizer = read_config(source), TextTokenizer.load(source)
    check_weights(source)
    reading = reading_of(source, config)
    config = {k: v for k, v in config.items() if k not in (KEY, "is_causal")}
    if layout == "official":
        _qwen2(config, source)
        own = {k: config.get(k, v) for k, v in DEFAULTS.items()} | dict(probabilities or {})
        own |= {"mask_token": tokenizer.vocab.mask_id, "audio_token_id_start": tokenizer.vocab.audio_start}
        config = {**spelled_for_transformers_4(config), **own, "architectures": [ARCHITECTURE]}
    else:
        config = {k: v for k, v in config.items() if k not in KEYS}
        if reading:
            config |= {KEY: {**reading, "mask_token_id": tokenizer.vocab.mask_id}}
            config |= {"is_causal": False} if reading["mask"] == "full" else {}
    if dtype:
        config = {**config, ("torch_dtype" if "torch_dtype" in config else "dtype"): dtype}
    with written_aside(out, overwrite, [source]) as partial:
        copy_weights(source, partial, dtype)
        _write_config(partial, config)
        _write_generation(source, partial, tokenizer)
        tokenizer.save(partial)
        if KEY in config:
            write_readme(partial, config[KEY])


def spelled_for_transformers_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` -> ``rope_theta`` (and ``rope_scaling``), ``dtype`` -> ``torch_dtype``; version 5 reads both."""
    out = dict(config)
    rope = out.pop("rope_parameters", None)
    if rope:
        rope = dict(rope)
        out["rope_theta"] = rope.pop("rope_theta", out.get("rope_theta", 10000.0))
        out["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    if "dtype" in out:
        out["torch_dtype"] = out.pop("dtype")
    return out


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``.  Raises `CheckpointError`."""
    return read_json(folder / "config.json", "name a model folder, or copy it again", error=CheckpointError)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model folder: the index's, or all there are.  Raises `CheckpointError` for a missing shard."""
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    mend = "copy the folder again"
    weight_map = read_json(index, mend, error=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: lists no weights (no object 'weight_map'); {mend}")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{index}: lists {name}, which is not there; copy the folder again")
    return [folder / name for name in names]


def weight_shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> (shape, type as safetensors spells it), from the files' headers."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    part = file.get_slice(name)
                    found[name] = (tuple(part.get_shape()), str(part.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not readable as safetensors: {error}; copy it again") from error
    return found


def check_weights(folder: Path, source: Path | None = None, name: Callable[[str], str] = str) -> None:
    """Compare the stored tensors with what ``config.json`` of ``folder`` describes: what is missing would be drawn at random
    by whoever loads the folder.

    ``source``: where the tensors are (default: ``folder``); ``name``: what they are called in ``folder``.  Raises
    `CheckpointError` for missing and unknown names, other shapes, and numbers that are no floats.
    """
    where = source or folder
    stored = {name(old): (old, *found) for old, found in weight_shapes(where).items()}
    expected, optional = expected_weights(folder)
    known = sorted(set(stored) & set(expected))
    missing = sorted(set(expected) - set(stored) - optional)
    unknown = sorted(stored[n][0] for n in set(stored) - set(expected) if not n.endswith("rotary_emb.inv_freq"))
    shapes = [
        f"{stored[n][0]!r}: {stored[n][1]} stored, {expected[n]} by config.json" for n in known if stored[n][1] != expected[n]
    ]
    types = [f"{stored[n][0]!r}: {stored[n][2]}" for n in known if stored[n][2] not in ("F64", "F32", "F16", "BF16")]
    names = {"missing": list(map(repr, missing)), "unknown": list(map(repr, unknown))}
    faults = {**names, "of another shape": shapes, "no floats": types}
    said = [f"{len(found)} of {len(expected)} weights {what}, first {found[0]}" for what, found in faults.items() if found]
    if said:
        raise CheckpointError(
            f"{where}: {'; '.join(said)}; the weights and config.json do not belong together: copy the folder again"
        )


def copy_weights(source: Path, out: Path, dtype: str = "") -> None:
    """Copy the safetensors, and their index, byte by byte; with ``dtype`` shard by shard through memory."""
    index = source / INDEX
    record = read_json(index, "copy the folder again", error=CheckpointError) if index.is_file() else None
    size = 0
    for path in weight_files(source):
        if not dtype:
            shutil.copyfile(path, out / path.name)
            continue
        import torch
        from safetensors.torch import load_file, save_file

        wanted = getattr(torch, dtype)
        tensors = {k: v.to(wanted) if v.is_floating_point() else v for k, v in load_file(path).items()}
        size += sum(v.numel() * v.element_size() for v in tensors.values())
        save_file(tensors, out / path.name, metadata={"format": "pt"})
    if record is not None:
        if dtype:
            record.setdefault("metadata", {})["total_size"] = size
        (out / INDEX).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def written_aside(out: Path, overwrite: bool, sources: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder beside ``out`` to write to; it takes its place when the block ends well, and is gone when it does not.

    Raises `ConfigError` unless ``out`` is new, empty, or with ``overwrite`` a model folder that this function made.
    """
    check_out(out, overwrite, sources)
    with folder_aside(out) as partial:
        yield partial
        write_json(partial / MADE, {"format": "ttt-model-1", "command": "ttt model"})


def check_out(out: Path, overwrite: bool, sources: Sequence[Path] = ()) -> None:
    """Raise `ConfigError` unless `written_aside` may write ``out``, which holds or touches none of the ``sources``."""
    check_replaced_folder(out, sources, is_made_here, "'ttt model'", overwrite)
    for parent in (p for p in Path(os.path.realpath(out)).parents if (p / "state.json").is_file()):
        raise ConfigError(f"{out}: lies in the checkpoint {parent}, which stays as it was; name a folder elsewhere")


def is_made_here(folder: Path) -> bool:
    """Is this a model folder that `written_aside` made, with nothing else in it?

    Older versions left no `MADE`; their tokenizer's vocab.json has a digest, which no other program writes.
    """
    if not is_our_json(folder / MADE, format="ttt-model-") and not is_our_json(folder / "vocab.json", digest="", num_codes=None):
        return False
    return (folder / "config.json").is_file() and holds_only(folder, MODEL_FILES)


def _qwen2(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("model_type") != "qwen2":
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {config.get('model_type')!r}: the official layout holds Qwen2 backbones "
            "only; use --layout hf"
        )


def _write_generation(source: Path, out: Path, tokenizer: TextTokenizer) -> None:
    """``generation_config.json`` of ``source`` with the end of a turn among the tokens that end an answer."""
    path = source / "generation_config.json"
    settings = read_json(path, "copy the folder again", error=CheckpointError) if path.is_file() else {}
    ends = settings.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    end = tokenizer.vocab.im_end_id
    if end not in ends:
        settings = {**settings, "eos_token_id": end, "pad_token_id": tokenizer.vocab.pad_id}
    (out / path.name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
