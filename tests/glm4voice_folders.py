"""Folders as GLM-4-Voice's are published, with tiny random weights, for whoever tests with them."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ttt.audio.codecs.glm4voice.files import WEIGHT_NORM, read_config
from ttt.audio.codecs.glm4voice.flow import Flow
from ttt.audio.codecs.glm4voice.hift import Hift

CONFIG = """
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:torch.manual_seed [1986]
sample_rate: 22050
spk_embed_dim: 192
llm: !new:cosyvoice.llm.llm.TransformerLM
    text_encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder {{output_size: 8}}
    sampling: !name:cosyvoice.utils.common.ras_sampling {{top_k: 25}}
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 16
    output_size: {mels}
    spk_embed_dim: !ref <spk_embed_dim>
    vocab_size: {codes}
    input_frame_rate: 12.5
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        input_size: 16
        output_size: 16
        attention_heads: 2
        linear_units: 24
        num_blocks: 2
        dropout_rate: 0.1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'block_rel_selfattn'
        block_size: 10
        use_cnn_module: False
        macaron_style: False
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: {mels}
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        cfm_params: !new:omegaconf.DictConfig
            content: {{sigma_min: 1e-06, solver: 'euler', t_scheduler: 'cosine', inference_cfg_rate: 0.7}}
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: {estimator_in}
            out_channels: {mels}
            channels: [16, 16]
            attention_head_dim: 4
            n_blocks: 1
            num_mid_blocks: 1
            num_heads: 2
            act_fn: 'gelu'
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: {mels}
    base_channels: 16
    sampling_rate: !ref <sample_rate>
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params: {{n_fft: 16, hop_len: 4}}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor {{in_channels: {mels}, cond_channels: 8}}
"""
# Convolutions of hift.pt that are stored under weight normalisation.
NORMED = re.compile(r"(conv_pre|conv_post|ups\.\d+|f0_predictor\.condnet\.\d+|.*resblocks\.\d+\.convs[12]\.\d+)\.weight")


def make_decoder_folder(path: Path, seed: int = 0, codes: int = 64, mels: int = 80) -> Path:
    """Write ``config.yaml``, ``flow.pt`` and ``hift.pt`` of a tiny decoder; gives ``path``.  22,050 Hz, 12.5 tokens/s."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(CONFIG.format(codes=codes, mels=mels, estimator_in=4 * mels))
    config = read_config(path / "config.yaml")
    draws = torch.Generator().manual_seed(seed)
    torch.save(random_weights(Flow(config.flow), draws), path / "flow.pt")
    hift = random_weights(Hift(config.hift), draws)
    hift["conv_post.bias"] -= 2.0  # logarithms of magnitudes: not so loud that the sound is clipped
    torch.save(with_weight_norm(hift), path / "hift.pt")
    return path


def random_weights(module: nn.Module, draws: torch.Generator) -> dict[str, Tensor]:
    """Weights that keep the scale of what passes through them."""
    out = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=draws)
        if name.endswith(("alpha", "norm.weight")) or (name.endswith("weight") and value.dim() == 1):
            out[name] = 1 + 0.1 * noise
        else:
            out[name] = noise / max(1, value[0].numel()) ** 0.5 if value.dim() > 1 else 0.1 * noise
    return out


def with_weight_norm(arrays: dict[str, Tensor], form: int = 0) -> dict[str, Tensor]:
    """The arrays of hift.pt in one of the two forms of weight normalisation."""
    out = {}
    for name, value in arrays.items():
        if NORMED.fullmatch(name):
            base = name.removesuffix(".weight")
            magnitude, direction = (base + end for end in WEIGHT_NORM[form])
            out[magnitude] = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
            out[direction] = 3 * value  # only its direction counts
        else:
            out[name] = value
    return out
