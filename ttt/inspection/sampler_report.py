"""The same prompts through several samplers: ``samplers.json``, ``samplers.md``, ``answers.jsonl`` and a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.api import Model, open_model, open_run
from ttt.config.schema import RunConfig
from ttt.data.read.holes import prompt_with_holes
from ttt.data.read.prompts import IDS
from ttt.errors import ConfigError, DataError
from ttt.eval.inputs import read_files, settings_of
from ttt.inspection.contenders import one_line, read_contenders
from ttt.inspection.results import results_folder
from ttt.inspection.samplers import Answered, decode, markdown_table, score_likelihood, summarise, text_table
from ttt.interfaces import LanguageModel
from ttt.io.atomic import folder_aside, write_json, write_json_lines, write_text
from ttt.likelihood import Draws
from ttt.tasks.records import by_label
from ttt.types import Example

log = logging.getLogger(__name__)
RESULTS = "samplers.json"
FILES = (r"samplers\.(json|md)", r"answers\.jsonl")  # patterns of all names in the report's folder


def compare_samplers(
    run: str | Path, examples: str, samplers: Sequence[str], *, uids: Sequence[str] = (), limit: int = 8, draws: int = 3,
    likelihood_draws: int = 8, side_by_side: int = 0, out: str = "", overrides: Sequence[str] = (),
    config: Sequence[str] = (), plugins: Sequence[str] = (),
) -> str:  # fmt: skip
    """Decode, measure and write; returns the table and, if asked for, answers side by side.

    ``samplers``: see `read_contenders`; ``uids``: examples of the file (default: the first ``limit`` of each task);
    ``draws``: answers to each prompt; ``likelihood_draws``: masked copies of a span for its bound (0: no likelihoods);
    ``side_by_side``: show the answers to so many prompts; ``out``: see `results_folder`.
    """
    settings, checkpoint = open_run(run, overrides, config, plugins)
    contenders = read_contenders(settings, samplers)
    if draws < 1:
        raise ConfigError(f"--draws: must be >= 1, got {draws}")
    likelihood = Draws(likelihood_draws) if likelihood_draws else None
    chosen = _examples(settings, examples, uids, limit)
    if likelihood is not None and any(IDS in e.meta or e.turns[0].role == "document" for e in chosen):
        raise ConfigError(
            f"{examples}: the answers to documents and to token ids have no likelihood here; give --likelihood-draws 0"
        )
    folder = results_folder(run, out, "samplers", RESULTS, FILES, [Path(examples)])
    model = open_model(settings, checkpoint, LanguageModel)
    tasks = by_label(settings.tasks)
    prompts = {e.uid: tasks[e.task].prompt(e) for e in chosen}
    answers = _decode(model, contenders, prompts, draws)
    if likelihood is not None:
        budget = max(1, settings.data.batch_positions)
        answers = {
            name: score_likelihood(listed, prompts, model, settings.objective, likelihood, settings.run.seed, budget)
            for name, listed in answers.items()
        }
    report = {
        **_report(settings, contenders, answers), "examples": examples, "uids": [e.uid for e in chosen], "draws": draws,
        "likelihood_draws": likelihood_draws, "checkpoint": str(checkpoint),
    }  # fmt: skip
    beside = answers_side_by_side(answers, chosen[:side_by_side]) if side_by_side else ""
    _write(folder, report, answers, beside)
    width = max(map(len, contenders))
    lines = [f"{name:{width}}  {line}" for name, line in report["what"].items()]
    parts = ["\n".join(lines), text_table(report["samplers"]), beside, f"{RESULTS}, samplers.md and answers.jsonl in {folder}"]
    return "\n\n".join(part for part in parts if part)


def _examples(config: RunConfig, path: str, uids: Sequence[str], limit: int) -> list[Example]:
    """The examples with these uids, or the first ``limit`` of each task (0: all)."""
    tasks = by_label(config.tasks)
    examples = [e for listed in read_files([path], 0 if uids else limit, tasks).values() for e in listed]
    if not examples:
        raise DataError(f"{path}: holds no example")
    by_uid = {e.uid: e for e in examples}
    for uid in uids:
        if uid not in by_uid:
            raise DataError(f"{path}: no example with uid {uid!r}")
    return [by_uid[uid] for uid in uids] or examples


def _decode(
    model: LanguageModel, contenders: Mapping[str, RunConfig], prompts: Mapping[str, Example], draws: int
) -> dict[str, list[Answered]]:
    asked = [prompt_with_holes(example, example, model.tokenizer, uid) for uid, example in prompts.items()]
    decoders = {name: Model(c, model).decoder() for name, c in contenders.items()}
    next(iter(decoders.values())).generate(asked[:1])  # the first call of a process is slow, whoever makes it
    answers = {}
    for name, decoder in decoders.items():
        answers[name] = decode(decoder, asked, draws, contenders[name].eval.batch_size)
        log.info("samplers: %s: %d answers", name, len(answers[name]))
    return answers


def _report(
    config: RunConfig, contenders: Mapping[str, RunConfig], answers: Mapping[str, Sequence[Answered]]
) -> dict[str, Any]:
    from ttt.eval.cards import git_state, hardware, versions

    rate_hz = getattr(config.codec, "code_rate_hz", None) or None if config.codec is not None else None
    summaries = {name: summarise(a, rate_hz, config.eval.bootstrap, config.run.seed) for name, a in answers.items()}
    return {
        "format": "ttt-samplers-1", "what": {name: one_line(c) for name, c in contenders.items()}, "samplers": summaries,
        "settings": {name: settings_of(c) for name, c in contenders.items()}, "versions": versions(), "git": git_state(),
        "hardware": hardware(),
    }  # fmt: skip


def answers_side_by_side(answers: Mapping[str, Sequence[Answered]], examples: Sequence[Example]) -> str:
    """Answers to each prompt, one sampler below the other; equal answers of several draws are shown once, counted."""
    width = max(map(len, (*answers, "wanted")))
    blocks = []
    for example in examples:
        lines = [f"{example.uid} ({example.task})"]
        if example.turns[-1].role == "assistant":
            lines.append(f"  {'wanted':{width}}  {written(example.turns[-1].spans)}")
        for name, listed in answers.items():
            counts: dict[str, int] = {}
            for a in listed:
                if a.uid == example.uid:
                    text = written(a.made.spans) + (" [cut]" if a.made.stopped == "length" else "")
                    counts[text] = counts.get(text, 0) + 1
            for number, (text, times) in enumerate(counts.items()):
                lines.append(f"  {'' if number else name:{width}}  {text}" + (f"   (x{times})" if times > 1 else ""))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def written(spans: Sequence[Any], most: int = 8) -> str:
    """Spans on one line: text as it is, the first codes of speech and how many there are."""
    parts = []
    for s in spans:
        if s.kind == "text":
            parts.append(" ".join(s.text.split()))
            continue
        frames = ["/".join(map(str, f)) for f in s.codes.tolist()]
        parts.append(f"[{len(frames)} codes: {' '.join(frames[:most])}{' ...' if len(frames) > most else ''}]")
    return " ".join(p for p in parts if p) or "(nothing)"


def _write(folder: Path, report: Mapping[str, Any], answers: Mapping[str, Sequence[Answered]], beside: str) -> None:
    """All files of the report, or none."""
    records = [
        {
            "sampler": name, "uid": a.uid, "draw": a.draw, "text": a.made.text, "codes": a.made.codes.tolist(),
            "calls": dict(a.made.calls), "seconds": a.made.seconds, "stopped": a.made.stopped,
            "nats": {k: v[0] for k, v in a.nats.items()} if a.nats is not None else None,
        }
        for name, listed in answers.items() for a in listed
    ]  # fmt: skip
    text = f"# Samplers\n\n{len(report['uids'])} prompts, {report['draws']} answers each.\n\n"
    text += "".join(f"* {name}: {line}\n" for name, line in report["what"].items())
    text += f"\n{markdown_table(report['samplers'])}\n"
    text += f"\n## Answers\n\n```text\n{beside}\n```\n" if beside else ""
    with folder_aside(folder) as partial:
        write_json_lines(partial / "answers.jsonl", records)
        write_text(partial / "samplers.md", text)
        write_json(partial / RESULTS, report)
