"""What a recipe costs before it runs: parameters, memory per GPU, time, money.  Nothing is built but shapes.

Memory is counted in closed form, tensor by tensor, for decoders with RMSNorm, grouped attention and a gated MLP (Qwen2,
Qwen3, Llama); ``benchmarks/memory.py`` measures how far off it is.  The allocator's waste and the CUDA context (1 to 2 GiB)
are not in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.config.schema import MISSING, RunConfig
from ttt.data.batches.loader import check_batch
from ttt.data.batches.seconds import in_tokens
from ttt.errors import ConfigError, suggest
from ttt.model.cross_entropy import CHUNK_BYTES, LEAST_ROWS
from ttt.model.folder import check_tokenizer
from ttt.model.shape import ADDED, QWEN_TOKENS, described, meta_model, parameter_counts
from ttt.text.forms import form_named
from ttt.text.tokenizer import TextTokenizer
from ttt.train.optimizers import optimizer_name, optimizer_of

# Dense bfloat16 FLOP/s and memory in bytes, from the makers' data sheets.
GPUS: dict[str, tuple[float, float]] = {
    "a100-40gb": (312e12, 40e9), "a100-80gb": (312e12, 80e9), "h100-80gb": (989e12, 80e9), "h200": (989e12, 141e9),
    "b200": (2250e12, 180e9), "l40s": (362e12, 48e9), "rtx4090": (165e12, 24e9), "rtx3090": (71e12, 24e9),
    "v100-32gb": (125e12, 32e9),
}  # fmt: skip
NF4_BYTES = (
    0.5 + (1 + 4 / 256) / 64
)  # four bits, and per 64 weights an 8-bit scale whose own scales are float32 per 256


@dataclass(frozen=True)
class Shape:
    """What memory and arithmetic depend on.  ``parts``: parameters by part (`parameter_counts`)."""

    layers: int
    width: int
    inner: int
    queries: int  # heads times head size
    keys: int  # key/value heads times head size
    heads: int
    vocab: int
    parts: Mapping[str, int]

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(self.parts.values())

    @property
    def linear(self) -> int:
        """Parameters of the layers' matrices: what every token is multiplied with."""
        return self.parts["attention"] + self.parts["mlp"]


def shape_of(config: RunConfig, vocab: int = 0) -> Shape:
    """The network of ``config.model`` with ``vocab`` ids (0: `vocab_size`)."""
    c = described(config.model, vocab or vocab_size(config)[0])
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if (number := getattr(c, name, None)) is not None and number < 1:
            raise ConfigError(f"model: {name} must be >= 1, got {number}")
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    groups = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    return Shape(
        layers=c.num_hidden_layers, width=c.hidden_size, inner=c.intermediate_size, queries=head * c.num_attention_heads,
        keys=head * groups, heads=c.num_attention_heads, vocab=c.vocab_size, parts=parameter_counts(meta_model(c)),
    )  # fmt: skip


def vocab_size(config: RunConfig) -> tuple[int, str]:
    """(ids of the run's vocabulary, where the number comes from): the run's tokenizer, the backbone's, or an assumption."""
    folder = Path(config.data.tokenizer)
    if config.data.tokenizer != "???" and (folder / "tokenizer.json").is_file():
        tokenizer = TextTokenizer.load(folder)
        if config.model.path:
            check_tokenizer(Path(config.model.path), tokenizer.token)
        return tokenizer.vocab.size, str(folder)
    if config.model.path and (Path(config.model.path) / "tokenizer.json").is_file():
        extended = TextTokenizer.extended(config.model.path, config.data.num_codes)
        return extended.vocab.size, f"{config.model.path}, extended by {config.data.num_codes} codes"
    added = ADDED + config.data.num_codes if config.data.num_codes else 1
    if config.model.preset.startswith("qwen2.5") or config.model.path:
        return QWEN_TOKENS + added, f"Qwen2.5's {QWEN_TOKENS} and {config.data.num_codes} codes"
    size = config.data.bpe_size + 3 + added
    return size, f"data.bpe_size {config.data.bpe_size} and {config.data.num_codes} codes"


def trained_parameters(config: RunConfig, shape: Shape) -> dict[str, int]:
    """What gets gradients: everything, what ``model.freeze`` leaves, or with ``model.lora`` ``adapters`` and ``new rows``."""
    lora, freeze = config.model.lora, config.model.freeze
    tables = shape.parts["embedding"] + shape.parts["head"]
    added = form_named(config.data.form, "data.form: ", config.data.num_codes).num_added(config.data.num_codes)
    rows = added * shape.width * (2 if shape.parts["head"] else 1)
    if not lora.rank:
        body = {} if freeze in ("body", "text_model") else {"body": shape.parameters - tables}
        trained_rows = {"new rows": rows} if freeze in ("text_rows", "text_model") else {"rows": tables}
        return {**body, **trained_rows} if freeze != "none" else {"all": shape.parameters}
    # (in, out) by the names these decoders give their linear layers.
    sizes = {
        "q_proj": (shape.width, shape.queries), "k_proj": (shape.width, shape.keys), "v_proj": (shape.width, shape.keys),
        "o_proj": (shape.queries, shape.width), "gate_proj": (shape.width, shape.inner),
        "up_proj": (shape.width, shape.inner), "down_proj": (shape.inner, shape.width),
    }  # fmt: skip
    for target in lora.targets:
        if target not in sizes:
            raise ConfigError(f"model.lora.targets: no {target!r}.{suggest(target, sizes)} Known: {', '.join(sizes)}")
    adapters = shape.layers * lora.rank * sum(sum(sizes[t]) for t in lora.targets)
    return {"adapters": adapters, "new rows": rows}


def state_bytes(config: RunConfig, shape: Shape, stage: int, gpus: int) -> dict[str, float]:
    """Bytes a GPU holds between updates, by kind, under ZeRO ``stage`` (0: the local engine).

    Local engine: weights and two Adam moments in ``model.dtype``, and under autocast a bfloat16 copy of every matrix while
    the forward and backward passes run.  ZeRO with ``train.autocast: bfloat16``: bfloat16 weights; float32 master weights
    and two moments (stage 1 and up: a GPU's share), gradients in bfloat16 (stage 1) or its share in float32 (2, 3).
    """
    trained = sum(trained_parameters(config, shape).values())
    frozen = shape.parameters - trained if config.model.lora.rank or config.model.freeze != "none" else 0
    still = config.model.lora.rank or config.model.freeze in (
        "body",
        "text_model",
    )  # the layers' matrices get no gradient
    mixed = config.train.autocast != "none"
    full = 4.0 if config.model.dtype == "float32" else 2.0
    frozen_bytes = full if stage == 0 or not mixed else 2.0
    held = frozen * frozen_bytes
    if config.model.lora.rank and config.model.lora.quantize == "nf4":
        held -= shape.linear * (frozen_bytes - NF4_BYTES)
    trained_bytes = 4.0 if config.model.lora.rank else full  # adapters and new rows are float32
    share = 1 if stage == 0 else gpus
    if stage == 0:
        gradients = trained * trained_bytes
        kinds = {"weights": held + gradients, "gradients": gradients, "optimizer": 2 * gradients}
        if mixed and full == 4.0:
            # Frozen matrices are cast as well, but only trained ones are kept: autocast caches what needs a gradient.
            kinds["autocast copies"] = 2.0 * (trained if still else shape.linear)
        if config.train.ema:
            kinds["averaged weights"] = 4.0 * trained
        return kinds
    weight = 2.0 if mixed else trained_bytes
    gradient = weight if stage == 1 else 4.0 / share
    weights = held + trained * weight
    return {
        "weights": weights / share if stage == 3 else weights, "gradients": trained * gradient,
        "optimizer": trained * (12.0 if mixed else 8.0) / share,
    }  # fmt: skip


def layer_bytes(config: RunConfig, shape: Shape) -> float:
    """Bytes that one layer keeps for the backward pass, per token.

    RMSNorm keeps its input and its normalised input; each linear layer its input (under autocast a cast of its own);
    attention queries, keys, values, its output and that output in the order of tokens; the MLP four tensors of its inner
    width (gate, its activation, up, their product).
    """
    w, q, i = shape.width, shape.queries, shape.inner
    autocast = config.train.autocast != "none" and config.model.dtype == "float32"
    c = 2.0 if autocast or config.model.dtype == "bfloat16" else 4.0
    # Queries and keys are float32 after the rotation under autocast, and cast again for attention.
    repeated = q if config.model.attention in ("sdpa", "eager", "flex_attention") else shape.keys
    attention = c * (2 * q + 2 * repeated + q) + 4.0 * shape.heads
    if autocast:
        norms, inputs = 2 * 8.0 * w, 5 * 2.0 * w
    elif c == 2.0:
        norms, inputs = 2 * 6.0 * w, 2 * 2.0 * w
    else:
        norms, inputs = 2 * 8.0 * w, 2 * 4.0 * w
    mlp = 4 * c * i
    return norms + inputs + attention + mlp


def activation_bytes(config: RunConfig, shape: Shape, tokens: int) -> float:
    """Bytes of activations at their peak for a micro-batch of ``tokens`` positions, the output layer left out."""
    return tokens * (
        kept_bytes(config, shape) + (layer_bytes(config, shape) if config.model.gradient_checkpointing else 0.0)
    )


def kept_bytes(config: RunConfig, shape: Shape) -> float:
    """Bytes a token that are kept from the forward to the backward pass: every layer's tensors, or with checkpointing its
    input alone; and the last norm's two."""
    residual = 2.0 if config.model.dtype == "bfloat16" else 4.0
    each = residual * shape.width if config.model.gradient_checkpointing else layer_bytes(config, shape)
    return shape.layers * each + (residual + 4.0) * shape.width


def head_bytes(config: RunConfig, shape: Shape, tokens: int, loss_share: float, device: str = "cuda") -> float:
    """Bytes of the loss: one chunk of logits three times over (output, float32, gradient), the head's gradient in
    float32, its cast, hidden states and their gradient."""
    c = 2.0 if config.train.autocast != "none" or config.model.dtype == "bfloat16" else 4.0
    rows = min(max(LEAST_ROWS, CHUNK_BYTES[device] // (4 * shape.vocab)), max(1, math.ceil(tokens * loss_share)))
    chunk = rows * shape.vocab * (4.0 + 4.0 + c)
    table = shape.vocab * shape.width * (4.0 + (c if c == 2.0 and config.model.dtype == "float32" else 0.0))
    if config.model.lora.rank:
        table = 0.0
    return chunk + table + 2 * c * tokens * loss_share * shape.width


def mask_bytes(config: RunConfig) -> float:
    """Bytes of a dense attention mask, and of its additive form; kernels that take rules need none."""
    if config.model.attention not in ("sdpa", "eager"):
        return 0.0
    return config.data.batch_positions * config.data.row_tokens * (5.0 if config.model.attention == "eager" else 3.0)


def gathered_bytes(config: RunConfig, shape: Shape) -> float:
    """Bytes of weights that ZeRO-3 brings together at a time: the largest table, and a layer with the next one."""
    each = 2.0 if config.train.autocast != "none" else 4.0
    return each * (shape.vocab * shape.width + 2 * shape.linear / shape.layers)


def memory(
    config: RunConfig, shape: Shape, stage: int, gpus: int, loss_share: float, device: str = "cuda"
) -> dict[str, float]:  # fmt: skip
    """Bytes by kind on one GPU, and under ``total`` the peak of an update.

    With several micro-batches the peak is the sum: gradients of the earlier ones are there while activations of the last
    are.  With one, gradients come as activations go: either all activations are there, or all gradients and one layer's.
    """
    tokens = config.data.batch_positions
    kinds = state_bytes(config, shape, stage, gpus)
    kinds["activations"] = activation_bytes(config, shape, tokens) + mask_bytes(config)
    kinds["loss"] = head_bytes(config, shape, tokens, loss_share, device)
    if stage == 3:
        kinds["gathered weights"] = gathered_bytes(config, shape)
    total = sum(kinds.values())
    if config.train.accumulate == 1:
        coming, going = kinds["gradients"], kinds["activations"] + kinds["loss"]
        total += max(going, coming + tokens * layer_bytes(config, shape)) - coming - going
    return {**kinds, "total": total}


def flops_per_token(config: RunConfig, shape: Shape, loss_share: float) -> float:
    """Arithmetic of one training token: 2 FLOP a matrix weight forward and 4 backward (2 where weights are frozen), the
    layers' forward pass once more with checkpointing, attention over the row (half of it where kernels skip blocks)."""
    whole = config.model.attention in ("sdpa", "eager")
    attention = 4.0 * shape.layers * shape.queries * config.data.row_tokens * (1.0 if whole else 0.5)
    layers = 2.0 * shape.linear + attention
    head = 2.0 * shape.vocab * shape.width * loss_share
    backward = 1.0 if config.model.lora.rank else 2.0
    again = 1.0 if config.model.gradient_checkpointing else 0.0
    adapters = 6.0 * trained_parameters(config, shape).get("adapters", 0)
    return layers * (1 + backward + again) + attention * (2.0 - backward) + 3.0 * head + adapters


def tokens_per_s(config: RunConfig, shape: Shape, gpus: int, gpu: str, mfu: float, loss_share: float) -> float:
    """Positions per second over all GPUs when each reaches the share ``mfu`` of its peak, recomputation included."""
    return gpus * gpu_of(gpu)[0] * mfu / flops_per_token(config, shape, loss_share)


def gpu_of(name: str) -> tuple[float, float]:
    """(peak FLOP/s, bytes) of a GPU.  Raises `ConfigError` listing the known ones."""
    if name not in GPUS:
        raise ConfigError(f"--gpu: no {name!r}.{suggest(name, GPUS)} Known: {', '.join(GPUS)}")
    return GPUS[name]


def zero_refuses(config: RunConfig) -> str:
    """Why ZeRO cannot train this model, as `ttt.train.engines.deepspeed` would say; empty when it can."""
    lora = config.model.lora
    if lora.rank and lora.quantize != "none":
        return "quantized weights cannot be spread"
    if config.train.autocast == "none" and config.model.dtype == "bfloat16":
        return "bfloat16 weights need train.autocast=bfloat16"
    if config.train.ema:
        return "train.ema needs whole weights"
    if not optimizer_of(config.train).elementwise:
        return f"{optimizer_name(config.train)} needs whole parameters"
    return ""


def counted_in_tokens(config: RunConfig) -> RunConfig:
    """The configuration with sizes of ``data`` that are given in seconds as tokens of ``data.tokenizer``."""
    if not (config.data.batch_s or config.data.quadratic_s):
        return config
    if config.data.tokenizer == MISSING:
        raise ConfigError(
            "data.batch_s: data.tokenizer says how many tokens a second has; name its folder, or give data.batch_tokens"
        )
    vocab = TextTokenizer.load(config.data.tokenizer).vocab
    return dataclasses.replace(config, data=in_tokens(config.data, vocab))


def check_sizes(config: RunConfig) -> None:
    """Raise `ConfigError` for numbers that make no update."""
    for name, number in (("data.row_tokens", config.data.row_tokens), ("train.accumulate", config.train.accumulate)):
        if number < 1:
            raise ConfigError(f"{name}: must be >= 1, got {number}")
    check_batch(config.data.row_tokens, config.data.batch_tokens, config.data.batch_samples, config.data.pack)


def rows_per_update(config: RunConfig, gpus: int) -> int:
    """Rows of ``data.row_tokens`` in one update over all GPUs; with ``data.batch_samples`` examples, as if each had a row."""
    return config.data.batch_positions // config.data.row_tokens * config.train.accumulate * gpus


def check_global_batch(config: RunConfig, gpus: int, global_batch: int) -> None:
    """Refuse an update that is not ``global_batch`` rows (with ``data.batch_samples``: examples).

    The message says which ``train.accumulate`` makes it so.
    """
    check_sizes(config)
    if gpus < 1 or global_batch < 1:
        raise ConfigError(f"ttt estimate: needs --gpus and --global-batch >= 1, got {gpus} and {global_batch}")
    rows = rows_per_update(config, gpus)
    if rows == global_batch:
        return
    each = config.data.batch_positions // config.data.row_tokens
    what = "samples" if config.data.batch_samples else "rows"
    mend = f"train.accumulate={global_batch // (each * gpus)}" if global_batch % (each * gpus) == 0 else "another number of GPUs"
    raise ConfigError(
        f"global batch: {gpus} GPUs x {each} {what} x train.accumulate {config.train.accumulate} = {rows} {what} an update, "
        f"not {global_batch}: give {mend}"
    )


def estimate(
    config: RunConfig, *, gpus: int, gpu: str, mfu: float, tokens: float = 0.0, price: float = 0.0, vocab: int = 0,
    loss_share: float = 0.6,
) -> dict[str, Any]:  # fmt: skip
    """Everything `ttt estimate` prints, as plain values (bytes, tokens, hours).

    ``memory`` has ``zero-1`` to ``zero-3`` only where ZeRO can train the model; ``zero_refuses`` says why not.
    """
    check_sizes(config)
    peak, room = gpu_of(gpu)
    if gpus < 1 or not 0 < mfu <= 1 or not 0 < loss_share <= 1:
        raise ConfigError("ttt estimate: needs --gpus >= 1, --mfu and --loss-share in (0, 1]")
    for name, value in (("--tokens", tokens), ("--price", price), ("--vocab", vocab)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name}: must be a finite number >= 0, got {value:g}")
    size, source = (vocab, "--vocab") if vocab else vocab_size(config)
    shape = shape_of(config, size)
    speed = tokens_per_s(config, shape, gpus, gpu, mfu, loss_share)
    per_update = rows_per_update(config, gpus) * config.data.row_tokens
    refused = zero_refuses(config)
    steps = 0 if isinstance(config.train.steps, str) else config.train.steps
    tokens = tokens or float(steps * per_update)
    hours = tokens / speed / 3600
    return {
        "vocabulary": {"ids": shape.vocab, "from": source},
        "parameters": {**shape.parts, "all": shape.parameters},
        "trained": trained_parameters(config, shape),
        "memory": {f"zero-{s}": memory(config, shape, s, gpus, loss_share) for s in range(1 if refused else 4)},
        "zero_refuses": refused,
        "gpu": {"name": gpu, "bytes": room, "peak_flops": peak, "mfu": mfu, "number": gpus},
        "update": {
            "rows": rows_per_update(config, gpus), "of": "samples" if config.data.batch_samples else "rows",
            "tokens": per_update, "steps": steps,
        },
        "flops_per_token": flops_per_token(config, shape, loss_share), "tokens_per_s": speed, "tokens": tokens,
        "hours": hours, "gpu_hours": hours * gpus, "cost": hours * gpus * price, "loss_share": loss_share,
    }  # fmt: skip
