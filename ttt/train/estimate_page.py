"""The cost estimate of a recipe as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def estimate_page(estimate: Mapping[str, Any], checkpointing: bool, price: float) -> str:
    """`ttt.train.estimate.estimate` for people.  ``checkpointing``: whether layers are recomputed in the backward pass."""
    gpu, update = estimate["gpu"], estimate["update"]
    out = [f"vocabulary   {estimate['vocabulary']['ids']:,} ids ({estimate['vocabulary']['from']})"]
    out.append("parameters   " + ", ".join(f"{k} {v / 1e6:,.1f} M" for k, v in estimate["parameters"].items() if v))
    out.append("trained      " + ", ".join(f"{k} {v / 1e6:,.1f} M" for k, v in estimate["trained"].items()))
    out.append(
        f"memory       GiB on each of {gpu['number']} {gpu['name']}, {gpu['bytes'] / 2**30:.0f} GiB; peak of an update"
    )
    kinds = [*dict.fromkeys(k for values in estimate["memory"].values() for k in values if k != "total"), "total"]
    stages = [f"zero-{s}" for s in range(4)]
    memory = {s: estimate["memory"].get(s, {}) for s in stages}  # empty: the engine refuses it
    head = {"zero-0": "local"}
    out.append(" " * 15 + f"{'':<18}" + "".join(f"{head.get(s, 'ZeRO-' + s[-1]):>10}" for s in stages))
    for kind in kinds:
        values = [memory[s].get(kind) for s in stages]
        cells = "".join(f"{'-' if v is None else format(v / 2**30, '.2f'):>10}" for v in values)
        out.append(" " * 15 + f"{kind:<18}" + cells)
    room = 0.94 * gpu["bytes"]
    fits = [("fits" if m["total"] < room else "too large") if m else "-" for m in memory.values()]
    out.append(" " * 15 + f"{'':<18}" + "".join(f"{v:>10}" for v in fits))
    if estimate["zero_refuses"]:
        out.append(" " * 15 + f"ZeRO: {estimate['zero_refuses']}; train.engine=local")
    again = "with" if checkpointing else "without"
    out.append(
        f"update       {update['rows']:,} {update['of']}, {update['tokens']:,} positions ({gpu['number']} GPUs); "
        f"{estimate['loss_share']:.0%} of them carry loss (assumed)"
    )
    out.append(
        f"speed        {estimate['tokens_per_s']:,.0f} tokens/s: {estimate['flops_per_token'] / 1e9:.1f} GFLOP a token, {again} "
        f"recomputed layers, at {gpu['mfu']:.0%} of {gpu['peak_flops'] / 1e12:.0f} TFLOP/s (assumed)"
    )
    if estimate["tokens"]:
        steps = f"{update['steps']:,} updates, " if update["steps"] else ""
        cost = f", cost {estimate['cost']:,.0f} at {price:g} a GPU hour" if price else ""
        out.append(
            f"time         {estimate['tokens'] / 1e9:,.2f} billion tokens ({steps}rows taken as full): {estimate['hours']:,.1f} h, "
            f"{estimate['gpu_hours']:,.0f} GPU hours{cost}"
        )
    else:
        out.append("time         give --tokens N (no train.steps to count)")
    out.append(
        "not counted  the allocator's waste and the CUDA context (1 to 2 GiB); see docs/backbones.md for measured errors"
    )
    return "\n".join(out)
