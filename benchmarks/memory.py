"""How far `ttt estimate` is off: its bytes beside measured ones, on CPU runs small enough to measure.

    python benchmarks/memory.py [--out memory.json]

Two measurements a setting: what autograd keeps of the decoder's forward pass (unique storages of saved tensors, weights left
out), and the peak of resident memory over two whole updates in a process of its own, less what it was before the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
BASE = [
    "model.preset=toy", f"model.overrides={json.dumps(SHAPE)}", "data.row_tokens=256", "data.batch_tokens=1024",
    "data.num_codes=4096", "data.bpe_size=4096", "train.steps=2", "run.device=cpu", "model.attention=sdpa",
]  # fmt: skip
SETTINGS = {
    "float32": [],
    "float32, checkpointing": ["model.gradient_checkpointing=true"],
    "autocast": ["train.autocast=bfloat16"],
    "autocast, checkpointing": ["train.autocast=bfloat16", "model.gradient_checkpointing=true"],
    "autocast, 2 micro-batches": ["train.autocast=bfloat16", "train.accumulate=2"],
    "bfloat16 weights": ["model.dtype=bfloat16"],
}


def saved_bytes(config: Any, model: Any, batch: Any) -> int:
    """Bytes that autograd keeps of one pass through the decoder."""
    import torch

    from ttt.masks.materialize import materialize

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Any) -> Any:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    mask = materialize(config.objective.mask, batch.layout(), model.attention, model.dtype)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=config.train.autocast == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), cast:
        hidden = model.hidden(batch.ids, batch.position, mask)
    # Weights that autocast has cast are counted as weights.
    held = cast._enabled and not config.model.gradient_checkpointing
    casts = sum(2 * p.numel() for n, p in model.named_parameters() if n.endswith("proj.weight")) if held else 0
    del hidden
    return sum(kept.values()) - casts


def batch_of(config: Any, vocab: int) -> Any:
    """Full rows: a prompt of text, then text and audio that carry loss (60 % of the positions)."""
    import torch

    from ttt.types import Kind, PackedBatch

    rows, width = config.data.batch_tokens // config.data.row_tokens, config.data.row_tokens
    at = torch.arange(width).expand(rows, width).contiguous()
    target = at >= width * 2 // 5
    kind = torch.where(at >= width // 2, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocab, (rows, width), generator=generator)
    everything = torch.ones_like(target)
    return PackedBatch(
        ids=ids, kind=kind, run_id=torch.cumsum(kind != int(Kind.AUDIO), 1),
        doc=torch.arange(rows)[:, None].expand(rows, width).clone(), position=at, target=target, noisable=target,
        visible=everything, n_docs=rows, mask_id=vocab - 1,
    )  # fmt: skip


def measured(settings: list[str]) -> dict[str, float]:
    """In this process: the estimate and both measurements of one setting."""
    import torch

    from ttt.config.load import load_config
    from ttt.model.lm import SpeechTextLM
    from ttt.text.vocab import Vocabulary
    from ttt.train import estimate
    from ttt.train.engines import build_engine
    from ttt.train.step import train_step

    torch.set_num_threads(1)
    config = load_config([], [*BASE, *settings, "objective.strategies=[]"])
    size, _ = estimate.vocab_size(config)
    vocab = Vocabulary(
        size=size, audio_start=4096, code_start=4097, num_codes=4096, mask_id=size - 1, soa_id=1, soa_last_id=2, user_end_id=3,
        eoa_id=size - 2, eoa_last_id=size - 3, im_start_id=4, im_end_id=5, pad_id=0,
    )  # fmt: skip
    batch = batch_of(config, size)
    _warm_up(config)
    before = _resident()
    from ttt.model.backbone import build_backbone

    tokenizer = type("Ids", (), {"vocab": vocab})()
    model = SpeechTextLM(build_backbone(config.model, vocab, 1), tokenizer)
    engine = build_engine(model, config.train, "cpu")
    _reset_peak()
    for update in range(2):
        train_step(engine, config.objective, [batch] * config.train.accumulate, update=update, seed=1, lr=1e-4)
    peak = _peak() - before
    shape = estimate.shape_of(config, size)
    return {
        "kept_estimated": config.data.batch_tokens * estimate.kept_bytes(config, shape),
        "kept_measured": float(saved_bytes(config, model, batch)),
        "peak_estimated": estimate.memory(config, shape, 0, 1, 0.6, "cpu")["total"], "peak_measured": float(peak),
    }  # fmt: skip


def _warm_up(config: Any) -> None:
    """Load every library an update needs before memory is counted."""
    import torch
    from torch import nn

    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    from ttt.model.shape import described, meta_model

    meta_model(described(config.model, 100))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    """Measure every setting in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="", help="also write the numbers as JSON")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(SETTINGS[arguments.one])))
        return
    # A fixed threshold: glibc would otherwise keep large freed blocks, and resident memory would not be live memory.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    table = {}
    print(f"{'setting':<26}{'kept MiB':>10}{'estimate':>10}{'off':>8}{'peak MiB':>12}{'estimate':>10}{'off':>8}")
    for name in SETTINGS:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-2000:]}")
        r = table[name] = json.loads(done.stdout.splitlines()[-1])
        cells = ""
        for part, width in (("kept", 10), ("peak", 12)):
            real, guess = r[f"{part}_measured"], r[f"{part}_estimated"]
            cells += f"{real / 2**20:>{width}.0f}{guess / 2**20:>10.0f}{guess / real - 1:>+8.1%}"
        print(f"{name:<26}{cells}", flush=True)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
