"""Speech tokens to mel by flow matching: GLM-4-Voice's ``flow.pt``.

GLM-4-Voice (arXiv 2412.02612) retrained the flow of CosyVoice (arXiv 2407.05407) with a token encoder that sees whole blocks
of tokens and those before, so that decoding can begin after one block.  The velocity is estimated by the 1-D U-Net of
Matcha-TTS (arXiv 2309.03199), conditional flow matching is arXiv 2210.02747, its guidance arXiv 2207.12598.  Official
program: ``cosyvoice/flow/flow.py`` (MaskedDiffWithXvec), ``cosyvoice/transformer/encoder.py`` (BlockConformerEncoder),
``cosyvoice/flow/decoder.py`` (ConditionalDecoder), ``cosyvoice/flow/flow_matching.py`` (ConditionalCFM).  Modules are named
as the arrays of the published file.

Letters: ``B`` rows, ``K`` tokens, ``F`` mel frames, ``M`` mel bins, ``D`` width, ``H`` heads, ``d`` width of a head.  A mask
[B, 1, F] is 1 where a row has a frame; None says that all rows are full.  Rows of a batch do not see each other, and what a row
gives does not depend on its padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ttt.audio.codecs.glm4voice.files import EncoderConfig, EstimatorConfig, FlowConfig


class Flow(nn.Module):
    """Tokens [K] to mel [M, F]."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        mels, encoder = config.output_size, config.encoder
        # not drawn: normal draws on the meta device load torch's compiler, which takes seconds
        self.input_embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.input_size))
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, mels)
        self.encoder = BlockConformer(encoder)
        self.encoder_proj = nn.Linear(encoder.output_size, mels)
        self.length_regulator = LengthRegulator(
            config.length_regulator.channels, len(config.length_regulator.sampling_ratios), mels
        )
        self.decoder = nn.ModuleDict({"estimator": VelocityUnet(config.decoder.estimator)})

    def forward(
        self, tokens: Sequence[Tensor], noise: Sequence[Tensor], prompt_mel: Tensor, speaker: Tensor, steps: int, guidance: float
    ) -> list[Tensor]:
        """Mels f32 [M, F_b - P] of rows of tokens i64 [K_b], each behind the frames of its prompt.

        Args:
            noise: where the flow of each row starts, [M, F_b]; says how many frames a row has.
            prompt_mel: [M, P] mel of the first P frames of every row; [M, 0] without a prompt.
            speaker: [E] speaker vector, not normalised; zeros are the voice that the flow learned.
            steps: Euler steps.
            guidance: 0 takes the conditional velocity alone, which halves the work.
        """
        frames = [row.shape[-1] for row in noise]
        full = len(set(frames)) == 1
        mask = None if full else _lengths_mask(frames, noise[0].device)[:, None].float()  # [B, 1, F]
        mu = self.encode(tokens, frames, mask)
        cond = torch.zeros_like(mu)
        cond[..., : prompt_mel.shape[-1]] = prompt_mel
        x = pad_sequence([row.T for row in noise], batch_first=True).mT
        mel = self.integrate(x, mu, self.speaker(speaker).expand(len(x), -1), cond, mask, steps, guidance)
        return [row[:, prompt_mel.shape[-1] : n] for row, n in zip(mel, frames)]

    def speaker(self, vector: Tensor) -> Tensor:
        """Speaker vector [E] -> [1, M]."""
        return self.spk_embed_affine_layer(F.normalize(vector[None].float(), dim=1))

    def encode(self, tokens: Sequence[Tensor], frames: Sequence[int], mask: Tensor | None) -> Tensor:
        """The mean ``mu`` [B, M, F] that tokens say a mel has."""
        lengths = [len(row) for row in tokens]
        keys = None if len(set(lengths)) == 1 else _lengths_mask(lengths, tokens[0].device)  # [B, K]
        hidden = self.encoder(self.input_embedding(pad_sequence(list(tokens), batch_first=True)), keys)
        return self.length_regulator(self.encoder_proj(hidden), lengths, frames, mask)

    def integrate(
        self, x: Tensor, mu: Tensor, speaker: Tensor, cond: Tensor, mask: Tensor | None, steps: int, guidance: float
    ) -> Tensor:
        """Euler steps from noise ``x`` [B, M, F] to a mel, small ones first (ConditionalCFM.solve_euler).

        dx/dt = (1 + guidance) v(x | mu, speaker, cond) - guidance v(x | 0, 0, 0); both are rows of one batch.
        """
        rows = 2 if guidance else 1
        given = [torch.cat([part, torch.zeros_like(part)]) if guidance else part for part in (mu, speaker, cond)]
        if mask is not None:
            mask = mask.repeat(rows, 1, 1)
        times = 1 - torch.cos(torch.linspace(0, 1, steps + 1) * (0.5 * math.pi))
        for now, after in pairwise(times.tolist()):
            velocity = self.decoder["estimator"](x.repeat(rows, 1, 1), now, *given, mask)
            if guidance:
                with_tokens, without = velocity.chunk(2)
                velocity = (1 + guidance) * with_tokens - guidance * without
            x = x + (after - now) * velocity
        return x


def _lengths_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """bool [B, max]: True before the end of each row."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


class BlockConformer(nn.Module):
    """Token vectors [B, K, D] -> [B, K, D]: pre-norm attention and feed-forward layers, no convolutions."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.embed = ScaledInput(config.input_size, config.output_size)
        self.encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """``keys``: bool [B, K], the tokens that are no padding.  A token sees its own block and those before."""
        x = self.embed(x)
        block = torch.arange(x.shape[1], device=x.device) // self.block_size
        seen = block <= block[:, None]  # [query, key]
        if keys is not None:
            seen = (seen & keys[:, None])[:, None]  # [B, 1, K, K]
        hidden = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, -torch.inf)
        positions = _distances(x.shape[1], x.shape[2]).to(x)
        for layer in self.encoders:
            x = layer(x, positions, hidden)
        return self.after_norm(x)


class ScaledInput(nn.Module):
    """Linear layer, norm, times sqrt(D) (LinearNoSubsampling with EspnetRelPositionalEncoding)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(width_in, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(x)
        return x * math.sqrt(x.shape[-1])


def _distances(length: int, width: int) -> Tensor:
    """Sinusoids [2 K - 1, D] of the distances K - 1, ..., -(K - 1): sine on even channels, cosine on odd ones."""
    angle = torch.arange(length - 1, -length, -1.0)[:, None] * torch.exp(
        torch.arange(0, width, 2).float() * (-math.log(10000.0) / width)
    )
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :width]


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual (ConformerEncoderLayer)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.output_size
        self.norm_mha, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = RelativeAttention(width, config.attention_heads)
        self.feed_forward = nn.ModuleDict(
            {"w_1": nn.Linear(width, config.linear_units), "w_2": nn.Linear(config.linear_units, width)}
        )

    def forward(self, x: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, hidden)
        return x + self.feed_forward["w_2"](F.silu(self.feed_forward["w_1"](self.norm_ff(x))))


class RelativeAttention(nn.Module):
    """Attention with relative positions (Transformer-XL, arXiv 1901.02860, section 3.3; RelPositionMultiHeadedAttention).

    score(i, j) = ((q_i + u) . k_j + (q_i + v) . W r_{i-j}) / sqrt(d)
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(width, width) for _ in range(4))
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """``positions`` [2 K - 1, D] of distances K - 1 down to 1 - K; ``hidden`` is added to scores [.., K, K]."""
        length = x.shape[1]
        q, k, v = (_heads(layer(x), self.heads) for layer in (self.linear_q, self.linear_k, self.linear_v))  # [B, H, K, d]
        r = _heads(self.linear_pos(positions)[None], self.heads)  # [1, H, 2 K - 1, d]
        by_distance = ((q + self.pos_bias_v[:, None]) @ r.mT).contiguous()  # [B, H, K, 2 K - 1]
        # Score (i, j) stands in row i at column K - 1 - i + j: each row begins one column earlier than the one above.
        b, h, row, column = by_distance.stride()
        by_place = by_distance.as_strided((*q.shape[:3], length), (b, h, row - column, column), length - 1)
        bias = by_place / math.sqrt(q.shape[-1]) + hidden
        out = F.scaled_dot_product_attention(q + self.pos_bias_u[:, None], k, v, attn_mask=bias)
        return self.linear_out(out.transpose(1, 2).flatten(2))


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, H d] -> [B, H, N, d]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class LengthRegulator(nn.Module):
    """Token rate to frame rate: each frame takes the nearest token before, then convolutions (InterpolateRegulator)."""

    def __init__(self, channels: int, layers: int, channels_out: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(layers):
            parts += [nn.Conv1d(channels, channels, 3, padding=1), GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*parts, nn.Conv1d(channels, channels_out, 1))

    def forward(self, x: Tensor, tokens: Sequence[int], frames: Sequence[int], mask: Tensor | None) -> Tensor:
        """[B, K, M] -> [B, M, F]; ``tokens``, ``frames``: the lengths of each row."""
        rows = [F.interpolate(row[:k].T[None], size=n, mode="nearest")[0].T for row, k, n in zip(x, tokens, frames)]
        x = pad_sequence(rows, batch_first=True).mT
        for layer in self.model:
            if isinstance(layer, GroupNorm):
                x = layer(x, mask)
            else:
                x = layer(_masked(x, mask))
        return _masked(x, mask)


class GroupNorm(nn.GroupNorm):
    """Group norm over the frames that a row has, not over its padding."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if mask is None:
            return super().forward(x)
        groups = x.float().unflatten(1, (self.num_groups, -1))  # [B, G, C / G, F]
        valid = mask[:, :, None]
        count = valid.sum((2, 3), keepdim=True) * groups.shape[2]
        centred = (groups - (groups * valid).sum((2, 3), keepdim=True) / count) * valid
        spread = (centred.square().sum((2, 3), keepdim=True) / count + self.eps).rsqrt()
        return ((centred * spread).flatten(1, 2).to(x.dtype)) * self.weight[:, None] + self.bias[:, None]


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.to(x.dtype)


class VelocityUnet(nn.Module):
    """The velocity of the flow at a time: a 1-D U-Net of residual blocks and transformers (ConditionalDecoder)."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        channels = config.channels
        self.time_width = config.in_channels
        time = 4 * channels[0]
        self.time_mlp = nn.ModuleDict(
            {"linear_1": nn.Linear(config.in_channels, time), "linear_2": nn.Linear(time, time)}
        )

        def level(width_in: int, width: int, change: nn.Module | None) -> nn.ModuleList:
            block = (config.num_heads, config.attention_head_dim)
            transformers = nn.ModuleList(TransformerBlock(width, *block) for _ in range(config.n_blocks))
            return nn.ModuleList([ResnetBlock(width_in, width, time), transformers, *([change] if change else [])])

        def last(width: int) -> nn.Module:
            return nn.Conv1d(width, width, 3, padding=1)

        def halve(width: int) -> nn.Module:
            return nn.ModuleDict({"conv": nn.Conv1d(width, width, 3, stride=2, padding=1)})

        def double(width: int) -> nn.Module:
            return nn.ModuleDict({"conv": nn.ConvTranspose1d(width, width, 4, 2, 1)})

        down = list(pairwise([config.in_channels, *channels]))
        up = list(pairwise([*reversed(channels), channels[0]]))
        self.down_blocks = nn.ModuleList(
            level(a, b, halve(b) if i < len(down) - 1 else last(b)) for i, (a, b) in enumerate(down)
        )
        self.mid_blocks = nn.ModuleList(level(channels[-1], channels[-1], None) for _ in range(config.num_mid_blocks))
        self.up_blocks = nn.ModuleList(
            level(2 * a, b, double(b) if i < len(up) - 1 else last(b)) for i, (a, b) in enumerate(up)
        )
        self.final_block = ConvBlock(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], config.out_channels, 1)

    def forward(
        self, x: Tensor, time: float, mu: Tensor, speaker: Tensor, cond: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """``x``, ``mu``, ``cond`` [B, M, F], ``speaker`` [B, M] -> velocity f32 [B, M, F] at ``time`` in [0, 1)."""
        dtype = self.final_proj.weight.dtype
        parts = [x, mu, speaker[..., None].expand(-1, -1, x.shape[-1]), cond]
        h = torch.cat([part.to(dtype) for part in parts], 1)
        at = F.mish(self._time(time, h))
        levels: list[tuple[Tensor, Tensor | None]] = []  # output and mask of each level on the way down
        for resnet, transformers, change in _levels(self.down_blocks):
            h = _transformed(transformers, resnet(h, at, mask), mask)
            levels.append((h, mask))
            if isinstance(change, nn.Conv1d):
                h = change(_masked(h, mask))
            else:
                h, mask = change["conv"](_masked(h, mask)), mask if mask is None else mask[..., ::2]
        for resnet, transformers in _levels(self.mid_blocks):
            h = _transformed(transformers, resnet(h, at, mask), mask)
        for resnet, transformers, change in _levels(self.up_blocks):
            skipped, mask = levels.pop()
            h = torch.cat([h[..., : skipped.shape[-1]], skipped], 1)
            h = _transformed(transformers, resnet(h, at, mask), mask)
            h = (change if isinstance(change, nn.Conv1d) else change["conv"])(_masked(h, mask))
        return self.final_proj(_masked(self.final_block(h, mask), mask)).float()

    def _time(self, time: float, like: Tensor) -> Tensor:
        """[1, 4 C]: sines and cosines of 1000 t at frequencies from 1 to 1e-4, through two layers (SinusoidalPosEmb)."""
        half = self.time_width // 2
        frequency = torch.exp(torch.arange(half, device=like.device) * (-math.log(10000.0) / (half - 1)))
        angle = 1000.0 * time * frequency
        wave = torch.cat([angle.sin(), angle.cos()])[None].to(like)
        return self.time_mlp["linear_2"](F.silu(self.time_mlp["linear_1"](wave)))


def _levels(blocks: nn.ModuleList) -> Any:
    return blocks  # lists of modules, which nn.ModuleList hides from type checkers


def _transformed(blocks: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """[B, C, F] through transformer blocks; padded frames are seen by none."""
    keys = None if mask is None else mask[:, None] > 0  # [B, 1, 1, F]
    h = x.mT.contiguous()
    for block in blocks:
        h = block(h, keys)
    return h.mT


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish (Matcha-TTS: Block1D)."""

    def __init__(self, width_in: int, width: int, groups: int = 8) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(width_in, width, 3, padding=1), GroupNorm(groups, width), nn.Mish())

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        conv, norm, mish = self.block
        return mish(norm(conv(_masked(x, mask)), mask))


class ResnetBlock(nn.Module):
    """Two convolution blocks with the time between them, beside a residual (Matcha-TTS: ResnetBlock1D)."""

    def __init__(self, width_in: int, width: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, width))
        self.block1, self.block2 = ConvBlock(width_in, width), ConvBlock(width, width)
        self.res_conv = nn.Conv1d(width_in, width, 1)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        """``time``: behind Mish, the same for all blocks."""
        h = self.block1(x, mask) + self.mlp[1](time)[..., None]
        return self.block2(h, mask) + self.res_conv(x)


class TransformerBlock(nn.Module):
    """Full attention and feed-forward over frames (Matcha-TTS: BasicTransformerBlock of diffusers)."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), keys)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Attention of ``heads`` heads, wider or narrower than the frames it works on."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        q, k, v = (_heads(layer(x), self.heads) for layer in (self.to_q, self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear to four times the width, GELU, linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [nn.ModuleDict({"proj": nn.Linear(width, 4 * width)}), nn.Identity(), nn.Linear(4 * width, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        widen, _, narrow = _levels(self.net)
        return narrow(F.gelu(widen["proj"](x)))
