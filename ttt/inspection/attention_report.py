"""Attention of a trained model on examples: pictures, ``attention.json``, TensorBoard and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.api import open_model, open_run
from ttt.config.load import to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError
from ttt.inspection.attention import Tally, has_time, kinds_of, measure, plan_at, summary, table
from ttt.inspection.attention_plots import layers_figure, map_figure, pixels, save_pixels
from ttt.inspection.results import results_folder
from ttt.interfaces import ShowsAttention
from ttt.io.atomic import folder_aside, write_json
from ttt.io.names import file_names, write_index
from ttt.registry.core import name_of

if TYPE_CHECKING:
    from ttt.types import Example, Plan

RESULTS = "attention.json"
FILES = (r"attention\.json", r"names\.json", r".*\.(png|npz)", "tensorboard")  # patterns of all names in the report's folder


@dataclass(frozen=True)
class Case:
    """One example, noised at ``time`` (None: the objective's validation plan), as the objective's plan of one row."""

    example: Example
    time: float | None
    plan: Plan


def report_attention(
    run: str | Path, examples: str | Path, *, uids: Sequence[str] = (), limit: int = 3, times: Sequence[float] = (),
    heads: bool = False, layers: Sequence[int] = (), max_gib: float = 4.0, out: str = "", overrides: Sequence[str] = (),
    config: Sequence[str] = (), plugins: Sequence[str] = (),
) -> str:  # fmt: skip
    """Write the report and return the tables.

    ``uids``: examples of the file (default: the first ``limit``); ``times``: diffusion times (default: 0.5); ``heads``: a
    picture and table lines for every head; ``layers``: those drawn (default: all; negative: from the last); ``max_gib``:
    refuse maps of more memory; ``out``: see `results_folder`.
    """
    settings, checkpoint = open_run(run, overrides, config, plugins)
    chosen = choose(examples, uids, limit)
    noised: list[float | None] = [*times] or ([0.5] if has_time(settings.objective) else [None])
    folder = results_folder(run, out, "attention", RESULTS, FILES, [Path(examples)])
    model = open_model(settings, checkpoint, ShowsAttention, attention="eager")
    cases = [Case(e, t, plan_of(model, settings, e, t)) for t in noised for e in chosen]
    _refuse_large(model, cases, max_gib)
    drawn = drawn_layers(model, layers)
    with folder_aside(folder) as partial:
        values = _look(model, settings, cases, drawn, heads, partial)
        write_index(partial, {name: uid for uid, name in file_names(e.uid for e in chosen).items()})
        write_json(partial / RESULTS, {
            **_facts(settings, cases[0].plan), "times": [{"time": t, "queries": v} for t, v in values.items()],
            "checkpoint": str(checkpoint), "examples": [e.uid for e in chosen],
        })  # fmt: skip
    number = f"{len(chosen)} example{'s' * (len(chosen) != 1)}"
    tables = [f"{_title(settings, cases[0].plan, t)}, {number}\n{table(v, heads)}\n" for t, v in values.items()]
    pictures = len(list(folder.glob("*.png")))
    return "\n".join([*tables, f"{pictures} pictures, arrays (.npz), {RESULTS} and TensorBoard in {folder}"])


def choose(path: str | Path, uids: Sequence[str], limit: int) -> list[Example]:
    """The examples with these uids, or the first ``limit``."""
    from ttt.data.read.examples import read_examples

    examples = read_examples(path)
    if not uids:
        return examples[: max(1, limit)]
    by_uid = {e.uid: e for e in examples}
    for uid in uids:
        if uid not in by_uid:
            raise DataError(f"{path}: no example with uid {uid!r}")
    return [by_uid[u] for u in uids]


def plan_of(model: ShowsAttention, config: RunConfig, example: Example, time: float | None) -> Plan:
    """The objective's plan of one example, in a row of its own."""
    from ttt.data.batches.rows import collate
    from ttt.data.encode import encode_example
    from ttt.rng import generator

    vocab = model.tokenizer.vocab
    if vocab.codes_together > 1:
        raise ConfigError(
            f"data.pattern: with {name_of(vocab.pattern)!r} {vocab.codes_together} codes stand at a position, and attention is "
            "shown by token; only models with one id a position can be inspected"
        )
    stream = encode_example(example, model.tokenizer, prompt_rule=config.data.prompt_rule)
    batch = collate([[stream]], len(stream), vocab.pad_id, vocab.mask_id, vocab.code_space)
    return plan_at(config.objective, batch, time, generator(config.run.seed, f"attention/{example.uid}"))


def _refuse_large(model: ShowsAttention, cases: Sequence[Case], max_gib: float) -> None:
    """Raise `DataError` naming the first example whose maps would not fit into ``max_gib``."""
    for case in cases:
        positions = case.plan.input_ids.shape[1]
        gib = model.attention_map_bytes(positions) / 2**30
        if gib > max_gib:
            raise DataError(
                f"example {case.example.uid!r}: {positions} positions need {gib:.2f} GiB for the maps of {model.num_layers} layers "
                f"x {model.num_heads} heads, the limit is {max_gib:g}; choose a shorter one with --uid, or raise --max-gib"
            )


def drawn_layers(model: ShowsAttention, layers: Sequence[int]) -> list[int]:
    """Numbers of the layers to draw (all by default); negative ones count from the last."""
    total = model.num_layers
    wrong = [n for n in layers if not -total <= n < total]
    if wrong:
        raise ConfigError(f"--layers: there is no layer {wrong[0]}; the model has {total} (0 to {total - 1})")
    return sorted({n % total for n in layers}) or list(range(total))


def _look(
    model: ShowsAttention, config: RunConfig, cases: Sequence[Case], layers: Sequence[int], heads: bool, folder: Path
) -> dict[float | None, dict[str, Any]]:
    """Run the network on every case, draw pictures and TensorBoard curves into ``folder``; -> time -> `summary`."""
    board = _board(folder / "tensorboard")
    totals: dict[float | None, dict[str, Tally]] = {}
    uids = file_names(case.example.uid for case in cases)
    for case in cases:
        maps = model.attention_maps(case.plan)
        of_time = totals.setdefault(case.time, {})
        for kind, tally in measure(maps, case.plan, model.tokenizer.vocab.mask_id).items():
            if kind in of_time:
                of_time[kind].add(tally)
            else:
                of_time[kind] = tally
        stem = uids[case.example.uid] + ("" if case.time is None else f".t{case.time:.2f}")
        np.savez_compressed(
            folder / f"{stem}.npz", attention=np.stack([maps[n].numpy() for n in layers]), layers=np.asarray(layers),
            ids=case.plan.input_ids[0].numpy(), kinds=kinds_of(case.plan, model.tokenizer.vocab.mask_id),
        )  # fmt: skip
        for name, figure in _pictures(maps, case, uids[case.example.uid], model, config, layers, heads):
            image = pixels(figure)
            save_pixels(image, folder / f"{name}.png")
            board.add_image(f"maps/{name}", image, 0, dataformats="HWC")
    summaries = {}
    number = len(cases) // len(totals)
    for time, tallies in totals.items():
        values = summaries[time] = summary(tallies)
        label = "clean" if time is None else f"t{time:.2f}"
        title = f"{_title(config, cases[0].plan, time)}, {number} example{'s' * (number != 1)}"
        image = pixels(layers_figure(values, title))
        save_pixels(image, folder / f"layers.{label}.png")
        board.add_image(f"layers/{label}", image, 0, dataformats="HWC")
        _add_curves(board, label, values)
    board.close()
    return summaries


def _title(config: RunConfig, plan: Plan, time: float | None) -> str:
    return f"{name_of(config.objective)}, mask {name_of(plan.mask)}" + ("" if time is None else f", t = {time:g}")


def _facts(config: RunConfig, plan: Plan) -> dict[str, Any]:
    from ttt.eval.cards import git_state, versions

    return {
        "format": "ttt-attention-1", "objective": to_plain(config.objective), "mask": to_plain(plan.mask),
        "seed": config.run.seed, "versions": versions(), "git": git_state(),
    }  # fmt: skip


def _pictures(
    maps: Sequence[Any], case: Case, name: str, model: ShowsAttention, config: RunConfig, layers: Sequence[int], heads: bool
) -> Iterator[tuple[str, Any]]:
    """(file name without suffix, figure): the means of all ``layers``, and with ``heads`` every head of each."""
    from ttt.masks.materialize import dense

    allowed = dense(case.plan.mask, case.plan.layout)[0].cpu().numpy()
    kinds = kinds_of(case.plan, model.tokenizer.vocab.mask_id)
    stem = name + ("" if case.time is None else f".t{case.time:.2f}")
    title = f"{case.example.uid}, {_title(config, case.plan, case.time)}"
    means = np.stack([maps[n].mean(0).numpy() for n in layers])
    names = [f"layer {n}" for n in layers]
    yield f"{stem}.layers", map_figure(means, allowed, kinds, names, f"{title}: means over heads")
    for n in layers if heads else ():
        of_layer = maps[n].numpy()
        names = [f"head {h}" for h in range(len(of_layer))]
        yield f"{stem}.layer{n:02d}", map_figure(of_layer, allowed, kinds, names, f"{title}: layer {n}")


def _add_curves(board: Any, label: str, values: Mapping[str, Any]) -> None:
    """One TensorBoard curve per measure; the step is the layer."""
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
