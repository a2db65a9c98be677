"""The Hugging Face causal LM inside a speech-text model: from a preset shape or a local folder, with rows for added tokens.

Its code is that of transformers: masks are passed as ``attention_mask``, positions as ``position_ids``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ttt.config.schema import ModelSection
from ttt.errors import CheckpointError, ConfigError, MissingExtraError, TttError, suggest
from ttt.interfaces import Initializer
from ttt.io.pretrained import from_settings, load_pretrained, own_code, refuse_misfits, refuse_nonfinite
from ttt.model.folder import check_folder, own_tokens
from ttt.model.packed_attention import register as register_attention
from ttt.rng import generator
from ttt.text.vocab import Vocabulary

log = logging.getLogger(__name__)

_QWEN2 = {"model_type": "qwen2", "rope_theta": 1.0e6, "rms_norm_eps": 1.0e-6, "hidden_act": "silu"}
PRESETS: dict[str, dict[str, Any]] = {
    "toy": {**_QWEN2, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 4096},
    # Rotations for a few hundred positions: with a base of 1e6 most of a head's 16 frequencies would hardly turn.
    "mini": {**_QWEN2, "rope_theta": 100.0, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5,
             "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True, "max_position_embeddings": 4096},
    "qwen2.5-0.5b": {**_QWEN2, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                     "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
                     "max_position_embeddings": 32768},
    "qwen2.5-1.5b": {**_QWEN2, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                     "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
                     "max_position_embeddings": 32768},
    "qwen2.5-3b": {**_QWEN2, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
                   "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True,
                   "max_position_embeddings": 32768},
}  # fmt: skip


def build_backbone(section: ModelSection, vocab: Vocabulary, seed: int, code_vectors: Any = None) -> torch.nn.Module:
    """A causal LM whose embedding holds every id of ``vocab``.

    From ``section.path``: weights of a local folder; rows beyond the folder's own vocabulary are added and initialised by
    ``section.init``.  From ``section.preset``: random weights; the audio-class rows count as added.  Raises
    `ConfigError` / `CheckpointError` for unknown presets, absent folders, pickled weights and sliding windows.
    """
    dtype = weight_type(section)
    if section.path:
        with own_code(section.trust_remote_code):
            hf = load_hf(section.path, section.attention, dtype, quantization(section, dtype))
        first_new = min(own_tokens(Path(section.path), hf.get_input_embeddings().num_embeddings), vocab.size)
        if vocab.size > hf.get_input_embeddings().num_embeddings:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                hf.resize_token_embeddings(vocab.size, mean_resizing=False)
    elif section.preset:
        hf = _from_preset(section, vocab, seed, dtype)
        first_new = vocab.text_vocab
    else:
        raise ConfigError("model.path: missing; give a local folder, or a shape with model.preset=" + "|".join(PRESETS))
    _refuse_sliding(hf.config)
    _refuse_scaled_logits(hf.config)
    _refuse_heads_with_more(hf)
    initialize_rows(hf, section.init, vocab, first_new, seed, code_vectors)
    hf.config.use_cache = False
    for token, value in (("pad_token_id", vocab.pad_id), ("eos_token_id", vocab.im_end_id)):
        setattr(hf.config, token, value)
        setattr(hf.generation_config, token, value)
    if section.gradient_checkpointing:
        enable_checkpointing(hf)
    return hf


def weight_type(section: ModelSection) -> torch.dtype:
    """``model.dtype`` as torch's."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[section.dtype]


def enable_checkpointing(hf: Any) -> None:
    """Keep one hidden state a layer and compute the rest again in the backward pass."""
    # Renamed in transformers 5; the old name goes in 6.
    name = "activation_checkpointing_enable"
    getattr(hf, name if hasattr(hf, name) else "gradient_checkpointing_enable")()


def compile_layers(hf: Any) -> int:
    """Compile norms and feed-forward parts of every layer of ``hf`` in place, for any length.  -> how many modules.

    Attention is left out: packed attention runs other tiles for every batch, which would be compiled anew each time, and
    FlexAttention is compiled by itself.  Weights, names and saved files stay as they are.
    """
    layers = getattr(hf.get_decoder(), "layers", None)
    if layers is None:
        raise ConfigError(f"model.compile: {type(hf).__name__} has no list of layers to compile; leave it off")
    parts = [child for layer in layers for name, child in layer.named_children() if "attn" not in name]
    for part in parts:
        part.compile(dynamic=True)
    return len(parts)


def quiet() -> None:
    """Keep transformers' own progress bars and accelerator notices out of the log."""
    import os

    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed would ask, and warn about the answer


def load_hf(
    path: str | Path, attention: str = "sdpa", dtype: torch.dtype = torch.float32, quantization: Any = None
) -> Any:
    """`AutoModelForCausalLM.from_pretrained` of a local folder; only safetensors, whole or sharded, are read.

    ``quantization``: settings of quantised weights (`quantization`).
    """
    from transformers import AutoModelForCausalLM

    quiet()
    register_attention()
    folder = Path(path)
    check_folder(folder)
    more = {} if quantization is None else {"quantization_config": quantization}
    try:
        hf, info = load_pretrained(
            AutoModelForCausalLM, folder, attn_implementation=attention, dtype=dtype, output_loading_info=True, **more
        )
    except TttError:
        raise
    except Exception as error:  # damaged files surface as many types
        raise CheckpointError(
            f"{folder}: cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    refuse_misfits(folder, info)
    refuse_nonfinite(folder, hf.named_parameters())
    return hf


def quantization(section: ModelSection, dtype: torch.dtype) -> Any:
    """Settings of quantised weights for `load_hf`, computing in ``dtype``: nf4 with double quantisation, or LLM.int8; or None."""
    if section.lora.rank < 1 or section.lora.quantize == "none":
        return None
    bitsandbytes()
    from transformers import BitsAndBytesConfig

    if section.lora.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def bitsandbytes() -> Any:
    """The package of quantised weights.  Raises `MissingExtraError`."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError(
            f"model.lora.quantize: quantised weights need the package bitsandbytes ({error}); pip install 'ttt-speech[lora]', or "
            "keep the weights whole with model.lora.quantize=none"
        ) from error
    return bitsandbytes


def initialize_rows(
    hf: Any, init: Initializer, vocab: Vocabulary, first_new: int, seed: int, code_vectors: Any = None
) -> None:
    """Initialise embedding rows [first_new, vocab.size), and the head's rows when it is not tied."""
    gen = generator(seed, "init_rows")
    tables = [hf.get_input_embeddings().weight]
    head = hf.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    ids = torch.arange(first_new, vocab.size)
    std = float(getattr(hf.config, "initializer_range", 0.02))
    if not len(ids):
        return
    with torch.no_grad():
        for table in tables:
            context: Mapping[str, Any] = {
                "old": table[:first_new].detach().cpu(), "vocab": vocab, "std": std, "code_vectors": code_vectors,
            }  # fmt: skip
            rows = init.initialize(table[first_new : vocab.size].detach().cpu().float(), ids, context, gen)
            table[first_new : vocab.size] = rows.to(table)


def _from_preset(section: ModelSection, vocab: Vocabulary, seed: int, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    quiet()
    register_attention()
    config = check_preset(section, vocab.size)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return from_settings(AutoModelForCausalLM, config, attn_implementation=section.attention, dtype=dtype)
    except Exception as error:  # what transformers and torch say of sizes that do not fit
        raise ConfigError(
            f"model.overrides: no network of {section.overrides or section.preset}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def check_preset(section: ModelSection, vocab_size: int = 1) -> Any:
    """transformers' configuration of ``model.preset`` with ``model.overrides``; None where ``model.path`` wins.

    Raises `ConfigError` for a shape that there is not, and for overrides that cannot be.
    """
    from transformers import AutoConfig

    if section.path or not section.preset:
        return None
    if section.preset not in PRESETS:
        raise ConfigError(
            f"model.preset: no shape named {section.preset!r}.{suggest(section.preset, PRESETS)} Shapes: {', '.join(PRESETS)}"
        )
    values = {**PRESETS[section.preset], **section.overrides, "vocab_size": vocab_size}
    model_type = values.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.overrides.model_type: no {model_type!r} in transformers") from error
    for key, value in section.overrides.items():
        if key == "model_type":
            continue
        if not hasattr(known, key):
            raise ConfigError(f"model.overrides.{key}: {model_type} has no such field.{suggest(key, known.to_dict())}")
        _check_override(key, value, getattr(known, key))
    _check_heads(values)
    try:
        return AutoConfig.for_model(model_type, **values)
    except Exception as error:  # transformers checks fields with errors of its own
        raise ConfigError(f"model.overrides: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


def _check_override(key: str, value: Any, usual: Any) -> None:
    """Refuse a size that is no number >= 1, and a value of another type than the usual one of the field."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in _SIZES and not (isinstance(value, int) and is_number and 1 <= value <= 10_000_000):
        raise ConfigError(f"model.overrides.{key}: must be a whole number >= 1, got {value!r}")
    if isinstance(usual, (int, float)) and not isinstance(usual, bool) and not (is_number and math.isfinite(value)):
        raise ConfigError(f"model.overrides.{key}: must be a finite number, got {value!r}")
    if isinstance(usual, (bool, str)) and type(value) is not type(usual):
        raise ConfigError(f"model.overrides.{key}: must be like {usual!r}, got {value!r}")


def _check_heads(values: Mapping[str, Any]) -> None:
    """Refuse heads that do not divide: the width by the heads, the heads by those of keys and values."""
    width, heads, pairs = (values.get(k) for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if width and heads and not values.get("head_dim") and width % (2 * heads):
        raise ConfigError(
            f"model.overrides.hidden_size: {width} must be a multiple of 2 x num_attention_heads = {2 * heads}: "
            "a head's size is even"
        )
    if heads and pairs and heads % pairs:
        raise ConfigError(f"model.overrides.num_attention_heads: {heads} must be a multiple of num_key_value_heads = {pairs}")


def _refuse_sliding(config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:  # models without a list of layers have one window for all, or none
        kinds = {"sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"}
    if kinds != {"full_attention"}:
        raise ConfigError(
            f"model: layers of kind {', '.join(sorted(kinds - {'full_attention'}))} would ignore their window under a "
            "custom mask; use a backbone with full attention only"
        )


# By the names of transformers' configurations: what some backbones do to logits behind their output layer.
_LOGIT_FACTORS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def _refuse_scaled_logits(config: Any) -> None:
    found = {n: getattr(config, n) for n in _LOGIT_FACTORS if getattr(config, n, None) not in (None, 1, 1.0)}
    if found:
        name, value = next(iter(found.items()))
        raise ConfigError(
            f"model: {config.model_type} changes its logits behind the output layer ({name}: {value}), which losses and "
            "samplers here do not do; use a backbone whose logits are those of its output layer"
        )


def _refuse_heads_with_more(hf: Any) -> None:
    """Refuse a network whose head is more than its output layer, as that of BERT, which transformers loads as a causal LM too."""
    parts = (hf.get_decoder(), hf.get_output_embeddings())
    known = {id(p) for part in parts if part is not None for p in part.parameters()}
    more = [name for name, p in hf.named_parameters() if id(p) not in known]
    if more:
        raise ConfigError(
            f"model: {type(hf).__name__} has weights between its layers and its output layer ({more[0]}), which losses and "
            "samplers here would leave out; encoders like BERT are no backbones, name a decoder"
        )
