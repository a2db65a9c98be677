"""Published diffusion language models that come with code of their own, as plain folders: LLaDA and Dream.

Their networks are those of Llama and of Qwen2 without a causal mask.  So tensors are renamed, the configuration is spelled as
transformers spells it, and the code of the folder is not run.  Names and shapes: ``configuration_llada.py`` and
``modeling_llada.py`` of GSAI-ML/LLaDA-8B-Base (arXiv 2502.09992), ``modeling_dream.py`` of Dream-org/Dream-v0-Base-7B (arXiv
2508.15487).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.errors import CheckpointError, DataError
from ttt.io.pretrained import refuse_nonfinite
from ttt.model.folder import check_folder
from ttt.model.official import INDEX, check_weights, import_official, read_config, weight_files, written_aside
from ttt.model.reading import KEY, write_readme
from ttt.text.tokenizer import TextTokenizer, read_backend

# What `_llada` translates; other values of these keys are other networks.
_LLADA_ONLY: Mapping[str, tuple[Any, ...]] = {
    "block_type": ("llama",), "layer_norm_type": ("rms",), "activation_type": ("silu",), "rope": (True,), "alibi": (False,),
    "include_bias": (False,), "include_qkv_bias": (False, None), "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False,), "input_emb_norm": (False,), "scale_logits": (False,), "clip_qkv": (None,),
}  # fmt: skip
_LLADA_NAMES = {
    "wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head", "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj", "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """How folders of one ``model_type`` are translated.

    ``form``: how their chats are written (``data.form``); ``mask``: spelling of the mask token, where ``mask_token_id`` is absent.
    """

    config: Callable[[Mapping[str, Any], Path], dict[str, Any]]
    name: Callable[[str], str]
    form: str
    mask: str
    logit_alignment: str


def _llada(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    for key, known in _LLADA_ONLY.items():
        if (value := config.get(key, known[0])) not in known:
            raise CheckpointError(f"{where}: {key} is {value!r}, in LLaDA's published models {known[0]!r}: this is another network")
    for key in ("d_model", "n_layers", "n_heads", "max_sequence_length"):
        if not isinstance(config.get(key), int):
            raise CheckpointError(f"{where}: {key} is {config.get(key)!r}, expected a whole number; copy the folder again")
    heads = config["n_heads"]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": config["d_model"],
        "intermediate_size": config.get("mlp_hidden_size") or config["mlp_ratio"] * config["d_model"],
        "num_hidden_layers": config["n_layers"], "num_attention_heads": heads,
        "num_key_value_heads": config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads),
        "max_position_embeddings": config["max_sequence_length"], "rope_theta": config.get("rope_theta", 10000.0),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5), "tie_word_embeddings": bool(config.get("weight_tying", True)),
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "initializer_range": config.get("init_std", 0.02),
    }  # fmt: skip


def _llada_name(name: str) -> str:
    found = re.fullmatch(r"model\.transformer\.(?:blocks\.(\d+)\.)?(\w+)\.weight", name)
    if found is None or found[2] not in _LLADA_NAMES:
        return name
    if found[1] is None:
        return f"{_LLADA_NAMES[found[2]]}.weight"
    part = "mlp.down_proj" if found[2] == "ff_out" else _LLADA_NAMES[found[2]]
    return f"model.layers.{found[1]}.{part}.weight"


def _dream(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    dropped = ("auto_map", "mask_token_id", "transformers_version", "use_cache", "_name_or_path")
    kept = {key: value for key, value in config.items() if key not in dropped}
    return {**kept, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


PUBLISHED = {
    "llada": Published(_llada, _llada_name, "headers", "<|mdm_mask|>", "same"),
    "Dream": Published(_dream, lambda name: name, "interleaved", "<|mask|>", "next"),
}


def import_any(source: Path, out: Path, overwrite: bool = False) -> TextTokenizer:
    """`import_published` or `ttt.model.official.import_official`, as ``config.json`` says."""
    published = read_config(source).get("model_type") in PUBLISHED
    return (import_published if published else import_official)(source, out, overwrite)


def import_published(source: Path, out: Path, overwrite: bool = False) -> TextTokenizer:
    """The folder ``source`` of a published model -> ``out``, a model folder of this toolkit that plain transformers loads too.

    Raises `CheckpointError` / `DataError` naming the file for pickled weights, missing or superfluous tensors, settings that
    make another network, and a mask that is not in the tokenizer.
    """
    check_folder(source)
    config, where = read_config(source), source / "config.json"
    kind = PUBLISHED[config["model_type"]]
    plain = kind.config(config, where)
    tokenizer = _tokenizer(source, config, kind)
    rows = plain.get("vocab_size", 0)
    if tokenizer.vocab.size > rows:
        raise CheckpointError(f"{where}: {rows} token rows for {tokenizer.vocab.size} ids of tokenizer.json; copy both again")
    vocab = tokenizer.vocab
    for name in ("torch_dtype", "dtype"):
        if name in config:
            plain["dtype"] = config[name]
    plain |= {"is_causal": False, "pad_token_id": vocab.pad_id, "eos_token_id": vocab.im_end_id, "use_cache": False}
    plain[KEY] = {"mask": "full", "logit_alignment": kind.logit_alignment, "mask_token_id": vocab.mask_id}
    with written_aside(out, overwrite, [source]) as partial:
        (partial / "config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        check_weights(partial, source, kind.name)
        _copy_renamed(source, partial, kind.name)
        tokenizer.save(partial)
        write_readme(partial, plain[KEY])
    return tokenizer


def _tokenizer(source: Path, config: Mapping[str, Any], kind: Published) -> TextTokenizer:
    """The tokenizer with the published mask and the tokens of turns."""
    if not (source / "tokenizer.json").is_file():
        raise DataError(
            f"{source}: no tokenizer.json; write one from vocab.json and merges.txt with "
            "transformers.Qwen2TokenizerFast.from_pretrained(DIR).save_pretrained(DIR)"
        )
    backend = read_backend(source)
    mask_id = config.get("mask_token_id")
    mask_id = backend.token_to_id(kind.mask) if mask_id is None else mask_id
    if mask_id is None or backend.id_to_token(mask_id) is None:
        raise DataError(f"{source}: mask_token_id {mask_id} is no token of tokenizer.json; copy both files again")
    return TextTokenizer.extended(source, 0, form=kind.form, mask_id=mask_id)


def _copy_renamed(source: Path, out: Path, name: Callable[[str], str]) -> None:
    """Write every safetensors file with its tensors under their new names, and the index of shards.

    Raises `CheckpointError` for numbers that are not finite.
    """
    from safetensors.torch import load_file, save_file

    places: dict[str, str] = {}
    size = 0
    for path in weight_files(source):
        published = load_file(path)
        refuse_nonfinite(path, published.items())
        tensors = {name(old): tensor for old, tensor in published.items()}
        save_file(tensors, out / path.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, path.name)
        size += sum(t.numel() * t.element_size() for t in tensors.values())
    if (source / INDEX).is_file():
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
