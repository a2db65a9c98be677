"""``ttt inspect attention``: maps, entropy, distance and shares of a trained model's attention on examples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.api import open_model
from ttt.cli.opening import open_config, results_folder
from ttt.config.load import to_plain
from ttt.errors import ConfigError, DataError
from ttt.interfaces import ShowsAttention
from ttt.io.atomic import folder_aside, write_json
from ttt.io.names import file_name
from ttt.registry import name_of

if TYPE_CHECKING:
    from ttt.config.schema import RunConfig
    from ttt.inspection.attention import Tally
    from ttt.types import Example, Plan

MARKER = "attention.json"


def attention(arguments: argparse.Namespace) -> int:
    """Look, write ``attention.json``, PNGs and TensorBoard to the folder, print the table."""
    config, checkpoint = open_config(arguments)
    examples = choose(arguments.examples, arguments.uid, arguments.limit)
    times = times_of(config, arguments.time)
    out = results_folder(arguments, "attention", MARKER)
    model = open_model(config, checkpoint, ShowsAttention, attention="eager")
    plans = [(e, t, plan_of(model, config, e, t)) for t in times for e in examples]
    refuse_large(model, plans, arguments.max_gib)
    layers = layers_of(model, arguments.layers)

    with folder_aside(out) as partial:
        report = _look(model, config, plans, layers, arguments, partial)
        report |= {"checkpoint": str(checkpoint), "examples": [e.uid for e in examples]}
        write_json(partial / MARKER, report)
    print(f"{sum(1 for p in out.glob('*.png'))} pictures, {MARKER} and TensorBoard in {out}")
    return 0


def choose(path: str, uids: Sequence[str], limit: int) -> list[Example]:
    """The examples asked for, or the first ``limit``."""
    from ttt.data.read.examples import read_examples

    found = read_examples(path)
    if not uids:
        return found[: max(1, limit)]
    by_uid = {e.uid: e for e in found}
    for uid in uids:
        if uid not in by_uid:
            raise DataError(f"{path}: no example with uid {uid!r}")
    return [by_uid[u] for u in uids]


def times_of(config: RunConfig, asked: Sequence[float]) -> list[float | None]:
    """Diffusion times to look at; one in the middle by default, none for objectives without a time."""
    from ttt.inspection.attention import has_time

    if asked:
        return list(asked)
    return [0.5] if has_time(config.objective) else [None]


def plan_of(model: ShowsAttention, config: RunConfig, example: Example, time: float | None) -> Plan:
    """The objective's plan of one example, a row of its own."""
    from ttt.data.batches.rows import collate
    from ttt.data.encode import encode_example
    from ttt.inspection.attention import plan_at
    from ttt.rng import generator

    vocab = model.tokenizer.vocab
    stream = encode_example(example, model.tokenizer, prompt_rule=config.data.prompt_rule)
    batch = collate([[stream]], len(stream), vocab.pad_id, vocab.mask_id, vocab.code_space)
    return plan_at(config.objective, batch, time, generator(config.run.seed, f"attention/{example.uid}"))


def refuse_large(model: ShowsAttention, plans: Sequence[tuple[Example, float | None, Plan]], max_gib: float) -> None:
    """Raise `DataError` naming the first example whose maps would not fit into ``max_gib``."""
    for example, _, plan in plans:
        positions = plan.input_ids.shape[1]
        gib = model.attention_map_bytes(positions) / 2**30
        if gib > max_gib:
            raise DataError(
                f"example {example.uid!r}: {positions} positions need {gib:.2f} GiB for the maps of {model.num_layers} layers x "
                f"{model.num_heads} heads, the limit is {max_gib:g}; choose a shorter one with --uid, or raise --max-gib"
            )


def layers_of(model: ShowsAttention, asked: Sequence[int]) -> list[int]:
    """Layers whose maps are drawn (all by default); negative ones count from the last."""
    total = model.num_layers
    wrong = [n for n in asked if not -total <= n < total]
    if wrong:
        raise ConfigError(f"--layers: there is no layer {wrong[0]}; the model has {total} (0 to {total - 1})")
    return sorted({n % total for n in asked}) or list(range(total))


def _look(
    model: ShowsAttention, config: RunConfig, plans: Sequence[tuple[Example, float | None, Plan]], layers: Sequence[int],
    arguments: argparse.Namespace, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Run the network on every plan, draw, add up; prints a table per time."""
    from ttt.inspection.attention import measure, summary, table
    from ttt.inspection.attention_plots import layers_figure, pixels, save_pixels

    board = _board(folder / "tensorboard")
    totals: dict[float | None, dict[str, Tally]] = {}
    for example, time, plan in plans:
        maps = model.attention_maps(plan)
        for kind, tally in measure(maps, plan, model.tokenizer.vocab.mask_id).items():
            known = totals.setdefault(time, {}).get(kind)
            if known is None:
                totals[time][kind] = tally
            else:
                known.add(tally)
        for name, figure in _pictures(maps, plan, model, config, example, time, layers, arguments.heads):
            image = pixels(figure)
            save_pixels(image, folder / f"{name}.png")
            board.add_image(f"maps/{name}", image, 0, dataformats="HWC")
    found = []
    for time, tallies in totals.items():
        values = summary(tallies)
        label = "clean" if time is None else f"t{time:.2f}"
        title = f"{_name(config.objective)}, mask {_name(plans[0][2].mask)}, " + (
            "" if time is None else f"t = {time:g}, "
        )
        number = len(plans) // len(totals)
        title += f"{number} example{'s' * (number != 1)}"
        print(f"{title}\n{table(values, arguments.heads)}\n")
        image = pixels(layers_figure(values, title))
        save_pixels(image, folder / f"layers.{label}.png")
        board.add_image(f"layers/{label}", image, 0, dataformats="HWC")
        _scalars(board, label, values)
        found.append({"time": time, "queries": values})
    board.close()
    from ttt.eval.cards import git_state, versions

    return {
        "format": "ttt-attention-1", "objective": to_plain(config.objective), "mask": to_plain(plans[0][2].mask),
        "seed": config.run.seed, "times": found, "versions": versions(), "git": git_state(),
    }  # fmt: skip


def _pictures(
    maps: Sequence[Any], plan: Plan, model: ShowsAttention, config: RunConfig, example: Example, time: float | None,
    layers: Sequence[int], heads: bool,
) -> Any:  # fmt: skip
    import numpy as np

    from ttt.inspection.attention import kinds_of
    from ttt.inspection.attention_plots import map_figure
    from ttt.masks.materialize import dense

    allowed = dense(plan.mask, plan.layout)[0].cpu().numpy()
    kinds = kinds_of(plan, model.tokenizer.vocab.mask_id)
    stem = file_name(example.uid) + ("" if time is None else f".t{time:.2f}")
    about = f"{example.uid}, {_name(config.objective)}, mask {_name(plan.mask)}" + (
        "" if time is None else f", t = {time:g}"
    )
    means = np.stack([maps[n].mean(0).numpy() for n in layers])
    yield (
        f"{stem}.layers",
        map_figure(means, allowed, kinds, [f"layer {n}" for n in layers], f"{about}: means over heads"),
    )
    for n in layers if heads else ():
        one = maps[n].numpy()
        names = [f"head {h}" for h in range(len(one))]
        yield f"{stem}.layer{n:02d}", map_figure(one, allowed, kinds, names, f"{about}: layer {n}")


def _scalars(board: Any, label: str, values: dict[str, Any]) -> None:
    """One curve per measure; the step is the layer."""
    for kind, part in values.items():
        for number, layer in enumerate(part["layers"]):
            mean = layer["mean"]
            flat = {k: mean[k] for k in ("entropy", "entropy_share", "distance", "ahead")}
            flat |= {f"to_{k}": v for k, v in mean["to"].items()}
            for key, value in flat.items():
                if value is not None:
                    board.add_scalar(f"attention/{label}/{kind}/{key}", value, number)


def _board(folder: Path) -> Any:
    from ttt.errors import MissingExtraError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(f"TensorBoard cannot be imported ({error}); 'pip install tensorboard'") from error
    return SummaryWriter(str(folder))


def _name(component: Any) -> str:
    return name_of(component)
