"""The verb ``estimate``: what a recipe will cost, from its configuration alone."""

from __future__ import annotations

import argparse
import json
from typing import Any


def estimate(arguments: argparse.Namespace) -> int:
    """Print parameters, memory by ZeRO stage, speed, hours and cost of a recipe; refuse a wrong global batch."""
    from ttt.config.load import load_config
    from ttt.train.estimate import check_global_batch
    from ttt.train.estimate import estimate as work_out

    config = load_config([arguments.recipe], arguments.overrides, arguments.plugins)
    if arguments.global_batch:
        check_global_batch(config, arguments.gpus, arguments.global_batch)
    found = work_out(
        config, gpus=arguments.gpus, gpu=arguments.gpu, mfu=arguments.mfu, tokens=arguments.tokens, price=arguments.price,
        vocab=arguments.vocab, loss_share=arguments.loss_share,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(lines(found, config.model.gradient_checkpointing, arguments.price)))
    return 0


def lines(found: dict[str, Any], checkpointing: bool, price: float) -> list[str]:
    """`ttt.train.estimate.estimate` for people."""
    gpu, update = found["gpu"], found["update"]
    out = [f"vocabulary   {found['vocabulary']['ids']:,} ids ({found['vocabulary']['from']})"]
    out.append("parameters   " + ", ".join(f"{k} {v / 1e6:,.1f} M" for k, v in found["parameters"].items() if v))
    out.append("trained      " + ", ".join(f"{k} {v / 1e6:,.1f} M" for k, v in found["trained"].items()))
    out.append(
        f"memory       GiB on each of {gpu['number']} {gpu['name']}, {gpu['bytes'] / 2**30:.0f} GiB; peak of an update"
    )
    kinds = [*dict.fromkeys(k for values in found["memory"].values() for k in values if k != "total"), "total"]
    stages = [f"zero-{s}" for s in range(4)]
    memory = {s: found["memory"].get(s, {}) for s in stages}  # empty: the engine refuses it
    head = {"zero-0": "local"}
    out.append(" " * 15 + f"{'':<18}" + "".join(f"{head.get(s, 'ZeRO-' + s[-1]):>10}" for s in stages))
    for kind in kinds:
        values = [memory[s].get(kind) for s in stages]
        cells = "".join(f"{'-' if v is None else format(v / 2**30, '.2f'):>10}" for v in values)
        out.append(" " * 15 + f"{kind:<18}" + cells)
    room = 0.94 * gpu["bytes"]
    fits = [("fits" if m["total"] < room else "too large") if m else "-" for m in memory.values()]
    out.append(" " * 15 + f"{'':<18}" + "".join(f"{v:>10}" for v in fits))
    if found["zero_refuses"]:
        out.append(" " * 15 + f"ZeRO: {found['zero_refuses']}; train.engine=local")
    again = "with" if checkpointing else "without"
    out.append(
        f"update       {update['rows']:,} rows, {update['tokens']:,} positions ({gpu['number']} GPUs); "
        f"{found['loss_share']:.0%} of them carry loss (assumed)"
    )
    out.append(
        f"speed        {found['tokens_per_s']:,.0f} tokens/s: {found['flops_per_token'] / 1e9:.1f} GFLOP a token, {again} "
        f"recomputed layers, at {gpu['mfu']:.0%} of {gpu['peak_flops'] / 1e12:.0f} TFLOP/s (assumed)"
    )
    if found["tokens"]:
        steps = f"{update['steps']:,} updates, " if update["steps"] else ""
        cost = f", cost {found['cost']:,.0f} at {price:g} a GPU hour" if price else ""
        out.append(
            f"time         {found['tokens'] / 1e9:,.2f} billion tokens ({steps}rows taken as full): {found['hours']:,.1f} h, "
            f"{found['gpu_hours']:,.0f} GPU hours{cost}"
        )
    out.append(
        "not counted  the allocator's waste and the CUDA context (1 to 2 GiB); see docs/backbones.md for measured errors"
    )
    return out
