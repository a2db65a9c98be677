"""The published unit vocoder, CodeHiFiGAN: units to samples in one network (arXiv 2104.00355; with durations 2107.05604).

Names of its arrays are those of fairseq's ``fairseq/models/text_to_speech/codehifigan.py`` and of textlesslib's
``textless/vocoders/hifigan/generator.py``.  Letters: ``F`` units, ``T`` frames, ``C`` channels, ``S`` samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from ttt.audio.weights import weights_digest, without_weight_norm
from ttt.errors import CheckpointError, ConfigError
from ttt.io.json_input import read_json
from ttt.io.pretrained import refuse_nonfinite

MEND = "point codec.vocoder at a folder with config.json and the generator (g_00500000, a .pt file or model.safetensors)"
SLOPE = 0.1
DURATION_REACH = 2  # units to either side that a predicted duration depends on


class CodeHifigan(nn.Module):
    """Embedded units (and a speaker, and a style), upsampled to sound by transposed convolutions with residual blocks."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.rate_hz = int(config.get("sampling_rate", 16_000))
        self.hop = math.prod(config["upsample_rates"])
        self.num_codes = int(config["num_embeddings"])
        width = int(config["embedding_dim"])
        self.dict = nn.Embedding(self.num_codes, width)
        self.spkr = nn.Embedding(config.get("num_speakers", 200), width) if config.get("multispkr") else None
        self.style = nn.Embedding(config.get("num_styles", 100), width) if config.get("multistyle") else None
        given = 1 + (self.spkr is not None) + (self.style is not None)
        channels = int(config["upsample_initial_channel"])
        self.conv_pre = nn.Conv1d(int(config.get("model_in_dim") or given * width), channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True):
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))
            channels //= 2
            shapes = zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True)
            self.resblocks.extend(_ResidualBlock(channels, kernel, dilations) for kernel, dilations in shapes)
        self._blocks = len(config["resblock_kernel_sizes"])  # of each upsampling
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)
        predictor = config.get("dur_predictor_params")
        self.dur_predictor = _DurationPredictor(width, predictor["var_pred_hidden_dim"]) if predictor else None

    def durations(self, ids: Tensor) -> Tensor:
        """Frames that each unit lasts: i64 [F] -> i64 [F], >= 1."""
        assert self.dur_predictor is not None
        logs = self.dur_predictor(self.dict(ids)[None])[0]
        return (logs.exp() - 1).round().long().clamp(min=1)

    def forward(self, ids: Tensor, speaker: int = 0, style: int = 0) -> Tensor:
        """Sound of units that last one frame each: i64 [T] -> f32 [T * hop]."""
        x = self.dict(ids)
        for table, number in ((self.spkr, speaker), (self.style, style)):
            if table is not None:
                x = torch.cat([x, table.weight[number].expand(len(x), -1)], dim=1)
        x = self.conv_pre(x.T[None])
        for i, up in enumerate(self.ups):
            x = up(leaky_relu(x, SLOPE))
            x = sum(block(x) for block in self.resblocks[i * self._blocks : (i + 1) * self._blocks]) / self._blocks
        samples = torch.tanh(self.conv_post(leaky_relu(x)))[0, 0]  # here the slope is PyTorch's, 0.01, as published
        wanted = len(ids) * self.hop
        return torch.nn.functional.pad(samples, (0, max(0, wanted - len(samples))))[:wanted]


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        half = (kernel - 1) // 2
        self.convs1 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, dilation=d, padding=half * d) for d in dilations)
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=half) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for one, two in zip(self.convs1, self.convs2, strict=True):
            x = x + two(leaky_relu(one(leaky_relu(x, SLOPE)), SLOPE))
        return x


class _DurationPredictor(nn.Module):
    """log(1 + frames) of each unit: [B, F, C] -> [B, F]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(width, hidden, 3, padding=1), nn.ReLU())
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, 3, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(self.conv1(x.transpose(1, 2)).transpose(1, 2))
        return self.proj(self.ln2(self.conv2(x.transpose(1, 2)).transpose(1, 2)))[..., 0]


def load_vocoder(folder: str | Path, device: str = "cpu") -> tuple[CodeHifigan, str]:
    """The vocoder of a folder and the digest of its weights.  Raises `CheckpointError` or `ConfigError` naming the folder."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no unit vocoder here (config.json is missing): {MEND}")
    config = read_json(folder / "config.json", "copy the folder again", error=CheckpointError)
    _refuse_other_kinds(folder, config)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights it starts with are thrown away
            model = CodeHifigan(config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: describes no CodeHiFiGAN ({error!r}): {MEND}") from error
    weights = without_weight_norm(_read(folder), folder, MEND)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: weights and config.json do not belong together ({reason}): copy it again") from error
    refuse_nonfinite(folder, weights.items())
    return model.to(device).eval(), weights_digest(weights)


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    kinds = {
        "f0": config.get("f0"), "embedder_params": config.get("embedder_params"),
        "f0_quant_num_bin": config.get("f0_quant_num_bin"), "resblock": str(config.get("resblock", 1)) != "1",
    }  # fmt: skip
    for name, other in kinds.items():
        if other:
            raise ConfigError(
                f"{folder}/config.json: {name} = {config[name]!r}: vocoders that need more than units and a speaker's number "
                "cannot be used"
            )
    predictor = config.get("dur_predictor_params")
    if predictor and predictor.get("var_pred_kernel_size", 3) != 3:
        raise ConfigError(f"{folder}/config.json: var_pred_kernel_size must be 3, as in all published vocoders")


def _read(folder: Path) -> Mapping[str, Tensor]:
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(folder / "model.safetensors")
    pickles = sorted([*folder.glob("g_*"), *folder.glob("*.pt")])
    if len(pickles) != 1:
        names = ", ".join(path.name for path in pickles) or "none"
        raise CheckpointError(f"{folder}: expected one file of weights (g_* or *.pt), found {names}: {MEND}")
    try:  # the restricted reader makes tensors and nothing else
        content = torch.load(pickles[0], map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{pickles[0]}: cannot be read ({reason}): copy it again") from error
    weights = content.get("generator") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{pickles[0]}: holds no generator: {MEND}")
    return weights
