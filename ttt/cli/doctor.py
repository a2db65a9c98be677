"""The verb ``doctor``: a run folder -> findings, one line each; exit code 1 when there is a fault."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.api import open_model, start_model
from ttt.config.load import load_config
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError, TttError, suggest
from ttt.interfaces import LanguageModel
from ttt.io.atomic import write_text
from ttt.io.json_input import read_json
from ttt.io.metrics_log import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from ttt.data.batches.text_ratio import AnyLoader
    from ttt.doctor import Finding
    from ttt.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

PROBE_BATCHES = 12  # batches that are planned; the network sees only the first few of them
MODEL_BATCHES = 3
USED_ROWS_BATCHES = 20  # first batches of the run, of whose tokens the rows are looked at


def doctor(arguments: argparse.Namespace) -> int:
    """Check one run, or make reference bands of several."""
    from ttt.doctor import check_bands, faults

    folders = [Path(p) for p in arguments.runs]
    rows = {folder: read_metrics(folder / METRICS_FILE) for folder in folders}
    if arguments.write_bands:
        return _write_bands(arguments, rows)
    if len(folders) > 1:
        raise ConfigError(f"{len(folders)} runs given: one at a time (several only with --write-bands)")
    (folder,) = folders
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder}: no config.yaml here; name the folder of a run (run.dir of 'ttt train')")
    config = load_config([folder / "config.yaml"], (), arguments.plugins)
    found = examine(folder, config, rows[folder], probes=not arguments.no_probes)
    bands = _bands_of(arguments, folder)
    if bands is not None:
        found += check_bands(rows[folder], bands)
    named = faults(found)
    if arguments.json:
        print(json.dumps({
            "run": str(folder), "faults": named, "findings": [dataclasses.asdict(f) for f in found],
        }, indent=1, ensure_ascii=False))  # fmt: skip
    else:
        for finding in found:
            print(finding.line())
        count = f"{len(named)} fault{'s' * (len(named) != 1)}: {'; '.join(named)}" if named else "no fault found"
        print(f"{folder}: {count}")
    return 1 if named else 0


def examine(
    folder: Path, config: RunConfig, rows: Sequence[Mapping[str, Any]], probes: bool = True
) -> list[Finding]:
    """All findings of one run, reference bands apart."""
    from ttt.doctor import SKIP, Finding, check_log
    from ttt.train.checkpoint import latest_complete
    from ttt.train.optim import lr_at

    checkpoint = latest_complete(folder / "checkpoints")
    tokenizer, problem = _tokenizer(config, checkpoint)
    command = folder / "command.txt"
    restarts = len(command.read_text(encoding="utf-8").splitlines()) - 1 if command.is_file() else 0
    random_start = not (config.model.path or config.train.init_from)
    found: list[Finding] = []
    causal = config.objective.arch == "causal_lm"
    if tokenizer is not None:
        per_update = rows[-1].get("train/epoch", 0.0) / rows[-1]["step"] if rows else 0.0
        schedule = lambda update, seconds: lr_at(config.train, update, seconds, update * per_update + 1e-9)  # noqa: E731
        guesses = tokenizer.vocab.size if causal else tokenizer.vocab.num_codes  # what an untrained network chooses from
        found += check_log(rows, config.train.steps, guesses, schedule, restarts, random_start)
    if problem:
        found.append(Finding("run/tokenizer", SKIP, problem))
    if not probes:
        return [*found, Finding("run/probes", SKIP, "not asked for (--no-probes)")]
    if tokenizer is None:
        return found
    if not causal:
        name = config.objective.arch
        return [*found, Finding("run/probes", SKIP, f"the network is of class {name!r}; probes look into causal LMs")]
    loader, notes = _loader(folder, config, tokenizer)
    found += notes
    if loader is None:
        return found
    done = rows[-1]["step"] if rows else 0
    return [*found, *_probes(config, tokenizer, loader, checkpoint, random_start, done)]


def _tokenizer(config: RunConfig, checkpoint: Path | None) -> tuple[TextTokenizer | None, str]:
    from ttt.text.tokenizer import TextTokenizer

    for place in ([checkpoint / "model"] if checkpoint else []) + [Path(config.data.tokenizer)]:
        if (place / "tokenizer.json").is_file() or place.is_file():
            return TextTokenizer.load(place), ""
    return None, f"no tokenizer in the checkpoint nor at data.tokenizer = {config.data.tokenizer}: nothing can be checked"


def _loader(folder: Path, config: RunConfig, tokenizer: TextTokenizer) -> tuple[AnyLoader | None, list[Finding]]:
    """The run's own loader, and what it says of the data."""
    from ttt.data.batches.text_ratio import training_loader
    from ttt.doctor import NOTE, OK, SKIP, WARN, Finding

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
    cut = _cut_share(config, loader)
    text += f"; strategies shorten {cut:.0%}" if cut else ""
    found = [Finding("data/examples", WARN if dropped > 0.01 * total else OK, text)]
    stored = folder / "data.json"
    if stored.is_file():
        before = read_json(stored, "run 'ttt train' again").get("data_digest")
        same = before == loader.digest
        text = "the run's own" if same else f"digest {loader.digest}, the run had {before}: other examples than it was trained on"
        found.append(Finding("data/digest", OK if same else NOTE, text))
    return loader, found


def _cut_share(config: RunConfig, loader: AnyLoader) -> float:
    """Share of examples whose stream a strategy shortens in the first epoch."""
    if not loader.strategies:
        return 0.0
    n = min(len(loader.streams), 500)
    return sum(len(loader._stream(0, i)) < len(loader.streams[i]) for i in range(n)) / n


def _probes(
    config: RunConfig, tokenizer: TextTokenizer, loader: AnyLoader, checkpoint: Path | None, random_start: bool, done: int
) -> list[Finding]:
    from ttt.doctor import SKIP, WARN, Finding, check_model, check_plans, check_rows, check_start

    vocab, objective, seed = tokenizer.vocab, config.objective, config.run.seed
    batches = [loader.micro_batch(update, 0) for update in range(PROBE_BATCHES)]
    found = check_plans(objective, batches, vocab, seed)
    if checkpoint is None:
        return [*found, Finding("model", SKIP, "no complete checkpoint: the network is not checked")]
    model = open_model(config, checkpoint / "model", LanguageModel)
    few = batches[:MODEL_BATCHES]
    found += check_model(model, objective, few, vocab, seed)
    try:
        initial = _initial(config, tokenizer)
    except TttError as error:
        return [*found, Finding("model/new_rows", SKIP, f"the initial weights cannot be made again: {error}")]
    if random_start:
        found += check_start(initial, objective, few, vocab, seed)
    first_new = None
    if config.model.path and not config.train.init_from:
        first_new = _first_new(Path(config.model.path))
    import torch

    seen = [loader.micro_batch(update, 0) for update in range(min(USED_ROWS_BATCHES, max(done, 1)))]
    used = torch.unique(torch.cat([plan_ids(objective, b, seed) for b in seen]))
    if initial.token_tables()["embedding"].shape != model.token_tables()["embedding"].shape:
        return [*found, Finding("model/new_rows", WARN, "the checkpoint's embedding has another size than the initial one")]
    return [*found, *check_rows(model, initial, used, vocab, first_new)]


def plan_ids(objective: Any, batch: Any, seed: int) -> Any:
    """Ids a plan of the objective puts in or asks for: those whose rows must learn."""
    import torch

    from ttt.rng import generator

    plan = objective.plan(batch, generator(seed, "doctor", 0))
    inside = plan.input_ids[plan.layout.doc >= 0]
    return torch.unique(torch.cat([inside, *(t.target for t in plan.terms.values())]))


def _initial(config: RunConfig, tokenizer: TextTokenizer) -> Any:
    """The weights the run started from, made again."""
    attention = "sdpa" if config.model.attention == "flex_attention" else config.model.attention
    plain = dataclasses.replace(config.model, attention=attention, compile=False, freeze="none")
    codec = config.codec.load() if config.codec is not None and not config.train.init_from else None
    return start_model(dataclasses.replace(config, model=plain), tokenizer, codec)


def _first_new(folder: Path) -> int | None:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True) if path.is_file() else None


# --- bands -----------------------------------------------------------------------------------------------------------


def recipe_configs(folder: Path) -> list[Path]:
    """The ``--config`` files of the run's last command."""
    path = folder / "command.txt"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    words = shlex.split(lines[-1]) if lines else []
    found = [Path(b) for a, b in zip(words, words[1:]) if a == "--config"]
    return found + [Path(w.removeprefix("--config=")) for w in words if w.startswith("--config=")]


def recipe_name(folder: Path) -> str:
    """``ttt``, or ``ttt+quick`` for a run of two config files; empty when unknown."""
    return "+".join(p.stem for p in recipe_configs(folder))


def _bands_of(arguments: argparse.Namespace, folder: Path) -> Mapping[str, Any] | None:
    """The bands that were asked for, or those shipped beside the run's recipe, if any."""
    name = arguments.recipe or recipe_name(folder)
    if arguments.bands:
        known = read_bands(Path(arguments.bands))
        if name not in known:
            raise ConfigError(
                f"{arguments.bands}: no bands of recipe {name!r}.{suggest(name, known)} There are: {', '.join(known)} (--recipe)"
            )
        return known[name]
    for config in recipe_configs(folder):
        beside = config.parent / "bands.yaml"
        if beside.is_file():
            return read_bands(beside).get(name)
    return None


def read_bands(path: Path) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Recipe -> key -> step -> [low, high].  Raises `DataError` naming the entry that is not of this form."""
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no readable bands: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path}: expected recipe -> key -> step -> [low, high]")
    for recipe, keys in raw.items():
        for key, steps in (keys if isinstance(keys, dict) else {"": None}).items():
            for step, band in (steps if isinstance(steps, dict) else {"": None}).items():
                pair = band if isinstance(band, list) and len(band) == 2 else [1, 0]
                if not isinstance(step, int) or not all(isinstance(v, (int, float)) for v in pair) or pair[0] > pair[1]:
                    raise DataError(f"{path}: {recipe}: {key}: {step}: expected a step and [low, high], got {band!r}")
    return raw


def _write_bands(arguments: argparse.Namespace, rows: Mapping[Path, Sequence[Mapping[str, Any]]]) -> int:
    """Add the bands of one recipe to a file; other recipes' stay."""
    from ttt.doctor import make_bands

    names = {arguments.recipe or recipe_name(folder) for folder in rows}
    if len(names) > 1 or "" in names:
        raise ConfigError(f"--write-bands: the runs are of recipes {', '.join(sorted(names)) or '?'}; name one with --recipe")
    if not 0 <= arguments.slack < 10:
        raise ConfigError(f"--slack: must be a share >= 0, got {arguments.slack}")
    name = names.pop()
    bands: dict[str, Any] = dict(make_bands(list(rows.values()), arguments.slack))
    if not bands:
        raise DataError("--write-bands: the runs share no logged loss at any step")
    path = Path(arguments.write_bands)
    known: dict[str, Any] = dict(read_bands(path)) if path.is_file() else {}
    known[name] = bands
    lines = [f"# Logs of healthy runs, by recipe, key and step: [low, high].  'ttt doctor RUN... --write-bands {path.name}'"]
    for recipe in sorted(known):
        lines.append(f"{recipe}:")
        for key, steps in known[recipe].items():
            inner = ", ".join(f"{s}: [{b[0]:g}, {b[1]:g}]" for s, b in steps.items())
            lines.append(f"  {key}: {{{inner}}}")
    write_text(path, "\n".join(lines) + "\n")
    print(f"{path}: {name}: {sum(map(len, bands.values()))} bands of {len(bands)} keys from {len(rows)} runs")
    return 0
