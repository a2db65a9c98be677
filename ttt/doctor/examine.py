"""All checks of one run folder: its log, the batches that its code makes, and its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ttt.api import open_model, start_model
from ttt.audio.loading import load_part
from ttt.config.load import load_config
from ttt.config.schema import RunConfig
from ttt.doctor.bands import bands_for, check_bands
from ttt.doctor.finding import NOTE, OK, SKIP, WARN, Finding
from ttt.doctor.log import check_log
from ttt.doctor.model import check_model, check_rows, check_start
from ttt.doctor.plans import check_plans
from ttt.errors import ConfigError, DataError, TttError
from ttt.interfaces import LanguageModel, Objective
from ttt.io.json_input import read_json
from ttt.io.metrics_log import METRICS_FILE, read_metrics
from ttt.rng import generator
from ttt.text.tokenizer import TextTokenizer
from ttt.types import PackedBatch

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.data.batches.text_ratio import AnyLoader

PLANNED_BATCHES = 12
MODEL_BATCHES = 3  # of the planned ones, those that the network sees
DATA_BATCHES = 20  # first batches of the run, whose token ids must have learnt rows
Rows = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl


def examine(
    folder: Path, *, probes: bool = True, bands: str = "", recipe: str = "", plugins: Sequence[str] = ()
) -> list[Finding]:
    """All findings of a run.

    ``probes``: also check batches and checkpoint; ``bands``: file of reference bands (default: the one beside the recipe);
    ``recipe``: its entry (default: the recipe the run was started with).  Raises `DataError` for a folder that is no run's.
    """
    rows = read_metrics(folder / METRICS_FILE)
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder}: no config.yaml here; name the folder of a run (run.dir of 'ttt train')")
    config = load_config([folder / "config.yaml"], (), plugins, stored=[folder / "config.yaml"])
    findings = check_run(folder, config, rows, probes)
    reference = bands_for(folder, bands, recipe)
    return findings if reference is None else [*findings, *check_bands(rows, reference)]


def check_run(folder: Path, config: RunConfig, rows: Rows, probes: bool = True) -> list[Finding]:
    """All findings but those of reference bands."""
    from ttt.train.checkpoint import latest_complete

    checkpoint = latest_complete(folder / "checkpoints")
    tokenizer = _tokenizer(config, checkpoint)
    findings = []
    if tokenizer is None:
        text = f"no tokenizer in the checkpoint nor at data.tokenizer = {config.data.tokenizer}: nothing can be checked"
        findings.append(Finding("run/tokenizer", SKIP, text))
    else:
        findings += _check_log(folder, config, rows, tokenizer)
    if not probes:
        return [*findings, Finding("run/probes", SKIP, "not asked for (--no-probes)")]
    if tokenizer is None:
        return findings
    if config.objective.arch != "causal_lm":
        text = f"the objective works with architecture {config.objective.arch!r}; probes look into language models"
        return [*findings, Finding("run/probes", SKIP, text)]
    if tokenizer.vocab.codes_together > 1:
        text = "several codes stand at one position of the network (data.pattern); probes look at networks with one id a position"
        return [*findings, Finding("run/probes", SKIP, text)]
    loader, of_data = _loader(folder, config, tokenizer)
    findings += of_data
    if loader is None:
        return findings
    batches = [loader.micro_batch(update, 0) for update in range(PLANNED_BATCHES)]
    findings += check_plans(config.objective, batches, tokenizer.vocab, config.run.seed)
    if checkpoint is None:
        return [*findings, Finding("model", SKIP, "no complete checkpoint: the network is not checked")]
    try:
        model = open_model(config, checkpoint / "model", LanguageModel)
    except ConfigError as error:  # another architecture
        return [*findings, Finding("model", SKIP, str(error))]
    steps = rows[-1]["step"] if rows else 0
    first = [loader.micro_batch(update, 0) for update in range(min(DATA_BATCHES, max(steps, 1)))]
    return [*findings, *_check_network(config, tokenizer, model, batches[:MODEL_BATCHES], first)]


def _random_start(config: RunConfig) -> bool:
    return not (config.model.path or config.train.init_from)


def _tokenizer(config: RunConfig, checkpoint: Path | None) -> TextTokenizer | None:
    """The checkpoint's tokenizer, else the configured one; None where neither is there."""
    for place in ([checkpoint / "model"] if checkpoint else []) + [Path(config.data.tokenizer)]:
        if (place / "tokenizer.json").is_file() or place.is_file():
            return TextTokenizer.load(place)
    return None


def _check_log(folder: Path, config: RunConfig, rows: Rows, tokenizer: TextTokenizer) -> list[Finding]:
    from ttt.train.learning_rate import lr_at

    commands = folder / "command.txt"
    restarts = len(commands.read_text(encoding="utf-8", errors="replace").splitlines()) - 1 if commands.is_file() else 0
    epochs_per_update = rows[-1].get("train/epoch", 0.0) / rows[-1]["step"] if rows else 0.0

    def schedule(update: int, seconds: float) -> float:
        return lr_at(config.train, update, seconds, update * epochs_per_update + 1e-9)

    # What an untrained network chooses from.
    choices = tokenizer.vocab.size if config.objective.arch == "causal_lm" else tokenizer.vocab.num_codes
    return check_log(rows, config.train.steps, choices, schedule, restarts, _random_start(config))


def _loader(folder: Path, config: RunConfig, tokenizer: TextTokenizer) -> tuple[AnyLoader | None, list[Finding]]:
    """(The run's own loader, or None without its data; what is found about the data)."""
    from ttt.data.batches.text_ratio import training_loader

    path = Path(config.data.train)
    if not path.exists():
        return None, [Finding("data/examples", SKIP, f"{path} is not there (from this folder): batches are not checked")]
    loader = training_loader(
        config.data, tokenizer, seed=config.run.seed, accumulate=config.train.accumulate,
        strategies=getattr(config.objective, "strategies", ()), max_drop_share=1.0,
    )  # fmt: skip
    dropped = sum(map(len, loader.report.dropped.values()))
    total = len(loader.streams) + dropped
    text = f"{total:,} examples, {dropped:,} dropped for their length ({dropped / total:.2%}), "
    text += f"fill {loader.report.fill:.0%}"
    shortened = _shortened_share(loader)
    text += f"; strategies shorten {shortened:.0%}" if shortened else ""
    findings = [Finding("data/examples", WARN if dropped > 0.01 * total else OK, text)]
    stored = folder / "data.json"
    if stored.is_file():
        before = read_json(stored, "delete it, or train again").get("data_digest")
        same = before == loader.digest
        text = "the run's own" if same else f"digest {loader.digest}, the run had {before}: other examples than it was trained on"
        findings.append(Finding("data/digest", OK if same else NOTE, text))
    return loader, findings


def _shortened_share(loader: AnyLoader) -> float:
    """Share of examples (of the first 500) whose stream a strategy shortens in the first epoch."""
    if not loader.strategies:
        return 0.0
    n = min(len(loader.streams), 500)
    return sum(len(loader._stream(0, i)) < len(loader.streams[i]) for i in range(n)) / n


def _check_network(
    config: RunConfig, tokenizer: TextTokenizer, model: LanguageModel, batches: Sequence[PackedBatch],
    first: Sequence[PackedBatch],
) -> list[Finding]:  # fmt: skip
    """Checks of the checkpoint, of the weights it started from, and of the rows in between.

    ``batches``: what the network is asked about; ``first``: the run's first batches, whose ids must have learnt.
    """
    vocab, objective, seed = tokenizer.vocab, config.objective, config.run.seed
    try:
        initial: Any = _initial_network(config, tokenizer)
    except TttError as error:
        findings = check_model(model, objective, batches, vocab, seed)
        return [*findings, Finding("model/new_rows", SKIP, f"the initial weights cannot be made again: {error}")]
    same_ids = initial.token_tables()["embedding"].shape == model.token_tables()["embedding"].shape
    findings = check_model(model, objective, batches, vocab, seed, initial.to(model.device).eval() if same_ids else None)
    if _random_start(config):
        findings += check_start(initial, objective, batches, vocab, seed)
    if not same_ids:
        text = "the checkpoint's embedding has another size than the initial one"
        return [*findings, Finding("model/new_rows", WARN, text)]
    used = torch.unique(torch.cat([_ids_of_plan(objective, b, seed) for b in first]))
    return [*findings, *check_rows(model, initial, used, vocab, _first_added_id(config))]


def _ids_of_plan(objective: Objective, batch: PackedBatch, seed: int) -> Tensor:
    """Inputs and targets i64 [n] of a plan: the ids whose rows must learn."""
    plan = objective.plan(batch, generator(seed, "doctor", 0))
    inside = plan.input_ids[plan.layout.doc >= 0]
    return torch.unique(torch.cat([inside, *(t.target for t in plan.terms.values())]))


def _initial_network(config: RunConfig, tokenizer: TextTokenizer) -> Any:
    """The network with the weights that the run started from, made again."""
    attention = "sdpa" if config.model.attention == "flex_attention" else config.model.attention
    plain = dataclasses.replace(config.model, attention=attention, compile=False, freeze="none")
    codec = None if config.train.init_from else load_part(config, "codec")
    return start_model(dataclasses.replace(config, model=plain), tokenizer, codec)


def _first_added_id(config: RunConfig) -> int | None:
    """The first id that is not of the backbone's own tokenizer; None: the first audio token."""
    from ttt.text.tokenizer import read_backend

    path = Path(config.model.path) / "tokenizer.json"
    if not config.model.path or config.train.init_from or not path.is_file():
        return None
    return read_backend(path).get_vocab_size(with_added_tokens=True)
