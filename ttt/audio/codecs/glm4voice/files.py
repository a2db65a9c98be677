"""The folder of GLM-4-Voice's decoder: ``config.yaml``, read as data, and ``flow.pt`` and ``hift.pt``, read without running code.

The fields below are those keys of the published ``config.yaml`` that change what is computed, with their published values.  The
rest (dropout, losses, the language model) is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ttt.audio.weights import give_weights, without_weight_norm
from ttt.errors import CheckpointError, ConfigError
from ttt.io.yaml_input import read_yaml
from ttt.registry import NonNegativeFloat, PositiveFloat, PositiveInt, nested
from ttt.registry.core import build_dataclass

if TYPE_CHECKING:
    from torch import Tensor, nn

MEND = "name a folder with config.yaml, flow.pt and hift.pt of GLM-4-Voice's decoder (THUDM/glm-4-voice-decoder), or copy it again"


@dataclass(frozen=True)
class EncoderConfig:
    """``flow.encoder``: the conformer over tokens."""

    input_size: PositiveInt = 512
    output_size: PositiveInt = 512
    attention_heads: PositiveInt = 8
    linear_units: PositiveInt = 2048
    num_blocks: PositiveInt = 6
    block_size: PositiveInt = 10
    normalize_before: Literal[True] = True
    input_layer: Literal["linear"] = "linear"
    pos_enc_layer_type: Literal["rel_pos_espnet"] = "rel_pos_espnet"
    selfattention_layer_type: Literal["block_rel_selfattn"] = "block_rel_selfattn"
    use_cnn_module: Literal[False] = False
    macaron_style: Literal[False] = False


@dataclass(frozen=True)
class RegulatorConfig:
    """``flow.length_regulator``: from token rate to frame rate."""

    channels: PositiveInt = 80
    sampling_ratios: list[PositiveInt] = field(default_factory=lambda: [1, 1, 1, 1])


@dataclass(frozen=True)
class SolverConfig:
    """``flow.decoder.cfm_params.content``: how the flow is integrated."""

    solver: Literal["euler"] = "euler"
    t_scheduler: Literal["cosine"] = "cosine"
    inference_cfg_rate: NonNegativeFloat = 0.7


@dataclass(frozen=True)
class SolverBlock:
    """``flow.decoder.cfm_params``."""

    content: SolverConfig = nested(SolverConfig)


@dataclass(frozen=True)
class EstimatorConfig:
    """``flow.decoder.estimator``: the U-Net that estimates velocities."""

    in_channels: PositiveInt = 320
    out_channels: PositiveInt = 80
    channels: list[PositiveInt] = field(default_factory=lambda: [256, 256])
    attention_head_dim: PositiveInt = 64
    n_blocks: PositiveInt = 4
    num_mid_blocks: PositiveInt = 12
    num_heads: PositiveInt = 8
    act_fn: Literal["gelu"] = "gelu"


@dataclass(frozen=True)
class CfmConfig:
    """``flow.decoder``."""

    cfm_params: SolverBlock = nested(SolverBlock)
    estimator: EstimatorConfig = nested(EstimatorConfig)


@dataclass(frozen=True)
class FlowConfig:
    """``flow``: tokens to mel."""

    input_size: PositiveInt = 512
    output_size: PositiveInt = 80
    spk_embed_dim: PositiveInt = 192
    vocab_size: PositiveInt = 16384
    input_frame_rate: PositiveFloat = 12.5
    encoder: EncoderConfig = nested(EncoderConfig)
    length_regulator: RegulatorConfig = nested(RegulatorConfig)
    decoder: CfmConfig = nested(CfmConfig)


@dataclass(frozen=True)
class StftConfig:
    """``hift.istft_params``."""

    n_fft: PositiveInt = 16
    hop_len: PositiveInt = 4


@dataclass(frozen=True)
class F0Config:
    """``hift.f0_predictor``."""

    num_class: Literal[1] = 1
    in_channels: PositiveInt = 80
    cond_channels: PositiveInt = 512


@dataclass(frozen=True)
class HiftConfig:
    """``hift``: mel to sound."""

    in_channels: PositiveInt = 80
    base_channels: PositiveInt = 512
    nb_harmonics: PositiveInt = 8
    sampling_rate: PositiveInt = 22050
    nsf_alpha: NonNegativeFloat = 0.1
    nsf_sigma: NonNegativeFloat = 0.003
    nsf_voiced_threshold: NonNegativeFloat = 10.0
    upsample_rates: list[PositiveInt] = field(default_factory=lambda: [8, 8])
    upsample_kernel_sizes: list[PositiveInt] = field(default_factory=lambda: [16, 16])
    istft_params: StftConfig = nested(StftConfig)
    resblock_kernel_sizes: list[PositiveInt] = field(default_factory=lambda: [3, 7, 11])
    resblock_dilation_sizes: list[list[PositiveInt]] = field(default_factory=lambda: [[1, 3, 5]] * 3)
    source_resblock_kernel_sizes: list[PositiveInt] = field(default_factory=lambda: [7, 11])
    source_resblock_dilation_sizes: list[list[PositiveInt]] = field(default_factory=lambda: [[1, 3, 5]] * 2)
    lrelu_slope: NonNegativeFloat = 0.1
    audio_limit: PositiveFloat = 0.99
    f0_predictor: F0Config = nested(F0Config)


@dataclass(frozen=True)
class DecoderConfig:
    """``config.yaml``."""

    flow: FlowConfig = nested(FlowConfig)
    hift: HiftConfig = nested(HiftConfig)


def read_config(path: Path) -> DecoderConfig:
    """The settings in a ``config.yaml``.  Raises `CheckpointError` naming the key for values that cannot be computed with.

    The file is written for hyperpyyaml: tags say what to build (``!new:``, ``!apply:``) and what to insert (``!ref <key>``).
    Nothing is built; ``<key>`` is replaced by the value of the key at the top of the file.
    """
    tree = read_yaml(path, MEND, error=CheckpointError, tags_as_data=True)
    try:
        return build_dataclass(DecoderConfig, _known(DecoderConfig, tree, tree), "")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; {MEND}") from error


def _known(cls: type, block: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``block`` that ``cls`` has, with references replaced."""
    out: dict[str, Any] = {}
    for f in fields(cls):
        if f.name not in block:
            continue
        value = block[f.name]
        if isinstance(value, str) and (name := re.fullmatch(r"<([^<>]+)>", value)):
            value = top.get(name[1], value)
        inner = f.metadata.get("section")
        out[f.name] = _known(inner, value, top) if inner and isinstance(value, Mapping) else value
    return out


def load_weights(module: nn.Module, folder: Path, stem: str) -> None:
    """Fill ``module`` from ``stem.pt`` (or ``stem.safetensors``) of a folder.  Every refusal is a `CheckpointError`.

    Weight normalisation, in both forms that torch has stored it in, is resolved: the module holds plain weights.
    """
    path = next((p for suffix in ("safetensors", "pt") if (p := folder / f"{stem}.{suffix}").is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: no GLM-4-Voice decoder here ({stem}.pt is missing): {MEND}")
    give_weights(module, without_weight_norm(_read(path), path, MEND), path, MEND)


def _read(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        arrays = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and zip readers raise many kinds for damaged files
        reason = " ".join(str(error).split(".")[0].split())[:200]
        raise CheckpointError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason}); {MEND}") from error
    if not isinstance(arrays, Mapping) or not all(isinstance(value, torch.Tensor) for value in arrays.values()):
        raise CheckpointError(f"{path}: expected arrays by name (a state dict), got something else; {MEND}")
    return dict(arrays)
