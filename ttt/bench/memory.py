"""`ttt bench train --memory`: peak memory of forward and backward, logits in chunks against all logits at once.

Every way runs in a process of its own.  On a CPU the peak is that of resident memory (``VmHWM``, reset before the step) above
what the weights take; on CUDA that of the allocator.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from ttt.bench.common import Report, reference_loop
from ttt.bench.workload import SHAPE, network, work
from ttt.errors import TttError

VOCAB, LENGTH, DOCUMENTS = 168_072, 2048, 4  # Qwen2.5's text ids and 16,384 codes; one row of packed documents
WAYS = ("full_logits_loss", "chunked_loss", "full_logits_step", "packed_step")


def memory_report(arguments: argparse.Namespace) -> Report:
    """Peaks of all ways, and ours as a share of the plain ones."""
    peaks = {way: _in_a_process(way, arguments) for way in WAYS}
    shares = {
        "memory_loss": peaks["chunked_loss"] / peaks["full_logits_loss"],
        "memory_step": peaks["packed_step"] / peaks["full_logits_step"],
    }
    return Report(
        "ttt bench train --memory: peak memory above the weights, of forward and backward",
        {
            "vocabulary": f"{VOCAB:,}", "positions": f"{LENGTH:,} ({DOCUMENTS} documents), no padding on either side",
            "width": f"{SHAPE['hidden_size']}, {SHAPE['num_hidden_layers']} layers, tied output layer, float32",
            **{way: f"{peak / 2**20:,.0f} MiB" for way, peak in peaks.items()},
        },
        (), shares,
        [
            "ratios: ours over the plain way; loss: from hidden states to their gradient and that of the output layer;",
            "step: the whole network (the reference loop's step, and what `ttt train` does)",
        ],
        {"peak_bytes": peaks},
    )  # fmt: skip


def peak_of(way: str, seed: int, device: str, attention: str) -> int:
    """Bytes above the weights; only right in a fresh process."""
    made = work(seed, VOCAB, [(LENGTH // DOCUMENTS,) * DOCUMENTS])
    if way.endswith("loss"):
        gen = torch.Generator().manual_seed(seed)
        head = torch.nn.Linear(SHAPE["hidden_size"], VOCAB, bias=False).to(device)
        hidden = torch.randn(LENGTH, head.in_features, generator=gen).to(device).requires_grad_()
        targets = torch.randint(VOCAB, (LENGTH,), generator=gen).to(device)

        def run() -> None:
            if way == "chunked_loss":
                from ttt.model.cross_entropy import chunked_nll

                chunked_nll(head, hidden, targets).sum().backward()
            else:
                F.cross_entropy(head(hidden).float(), targets, reduction="none").sum().backward()
    else:
        from ttt.bench.steps import Steps

        told = argparse.Namespace(
            seed=seed, device=device, autocast="none", attention=attention, checkpointing=False, compile=False
        )
        if way == "packed_step":
            steps = Steps(made, told, None)

            def run() -> None:
                steps.packed_step(0)
        else:
            plain = reference_loop("reference_train")
            model = network(made.vocab, seed, "sdpa").to(device).transformers_model
            documents = [(s.ids.tolist(), s.prompt_length) for s in made.rounds[0]]
            rows = plain.pad(documents, LENGTH // DOCUMENTS, made.vocab.pad_id)
            rows = type(rows)(*(getattr(rows, f).to(device) for f in rows.__dataclass_fields__))
            draws = [torch.full((DOCUMENTS,), 0.5, device=device), torch.rand(rows.ids.shape).to(device)]

            def run() -> None:
                plain.step(model, rows, *draws, made.vocab.mask_id, made.vocab.audio_start)

    return _peak(run, device)


def _peak(run, device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    fresh = True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    except OSError:
        fresh = False
    run()
    peak = _resident("VmHWM") if fresh else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak - before


def _resident(name: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    raise TttError("bench --memory: this system has no /proc/self/status to read resident memory from")


def _in_a_process(way: str, arguments: argparse.Namespace) -> int:
    told = [way, str(arguments.seed), arguments.device, arguments.attention, str(arguments.threads)]
    done = subprocess.run(
        [sys.executable, "-m", "ttt.bench.memory", *told], capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode} (out of memory?)"]
        raise TttError(f"bench --memory: {way} failed: {last[0]}")
    return int(json.loads(done.stdout)["peak"])


if __name__ == "__main__":
    _way, _seed, _device, _attention, _threads = sys.argv[1:]
    torch.set_num_threads(int(_threads))
    print(json.dumps({"peak": peak_of(_way, int(_seed), _device, _attention)}))
