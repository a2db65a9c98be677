"""``ttt inspect samplers``: the same prompts through several samplers, beside each other."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.api import Model, decode_settings, open_model
from ttt.chat.settings import same_canvas
from ttt.cli.opening import open_config, results_folder
from ttt.config.load import build_config, merge, to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError, TttError
from ttt.interfaces import LanguageModel
from ttt.io.atomic import folder_aside, write_json, write_json_lines, write_text
from ttt.registry import name_of

if TYPE_CHECKING:
    from ttt.inspection.samplers import Answered
    from ttt.types import Example

log = logging.getLogger(__name__)
MARKER = "samplers.json"
OWN = "own"  # the run's own sampler


def samplers(arguments: argparse.Namespace) -> int:
    """Decode, measure, write ``samplers.json``, ``samplers.md`` and ``answers.jsonl``, print the table."""
    from ttt.likelihood import Draws

    config, checkpoint = open_config(arguments)
    contenders = read_contenders(config, arguments.samplers)
    if arguments.draws < 1:
        raise ConfigError(f"--draws: must be >= 1, got {arguments.draws}")
    draws = Draws(arguments.likelihood_draws) if arguments.likelihood_draws else None
    examples = _examples(config, arguments)
    out = results_folder(arguments, "samplers", MARKER)
    model = open_model(config, checkpoint, LanguageModel)
    prompts = {e.uid: _prompt(config, e) for e in examples}
    answers = _decode(model, contenders, prompts, arguments.draws)
    if draws is not None:
        answers = _score(answers, prompts, model, config, draws)
    report = _report(config, contenders, answers, examples, checkpoint, arguments)
    shown = side_by_side(answers, examples, arguments.side_by_side) if arguments.side_by_side else ""
    _write(out, report, answers, shown)
    from ttt.inspection.samplers import text_table

    width = max(map(len, contenders))
    for name, line in report["what"].items():
        print(f"{name:{width}}  {line}")
    print("\n" + text_table(report["samplers"]) + (f"\n\n{shown}" if shown else ""))
    print(f"\n{MARKER}, samplers.md and answers.jsonl in {out}")
    return 0


def read_contenders(config: RunConfig, specs: Sequence[str]) -> dict[str, RunConfig]:
    """Name -> configuration with that sampler; every one is built and checked.

    A spec is a YAML file, or YAML itself: a sampler (``threshold``, ``{name: threshold, threshold: 0.7}``, ``own``), a list
    of samplers, or ``{label: settings}`` where settings are a sampler or keys of the section ``eval``.
    """
    found: dict[str, RunConfig] = {}
    for spec in specs:
        for label, node, named in _nodes(spec):
            if label in found and named:
                raise ConfigError(f"--samplers: {label!r} is there twice; give another label")
            again = sum(known == label or known.startswith(f"{label} ") for known in found)
            label = f"{label} {again + 1}" if again and not named else label
            try:
                found[label] = build_config(merge(to_plain(config), {"eval": same_canvas(config, node)}))
                decode_settings(found[label])
            except TttError as error:
                raise type(error)(f"--samplers, {label!r}: {error}") from error
    return found


def _nodes(spec: str) -> list[tuple[str, dict[str, Any], bool]]:
    """(label, keys over the section ``eval``, was the label given?) of one ``--samplers``."""
    import yaml

    path = Path(spec)
    is_file = spec.endswith((".yaml", ".yml"))
    if is_file and not path.is_file():
        raise ConfigError(f"--samplers: {path}: no such file")
    place = f"--samplers: {path}" if is_file else "--samplers"
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8") if is_file else spec)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}: not readable as YAML: {' '.join(str(error).split())}") from error
    if isinstance(node, Mapping) and "name" not in node:
        return [(str(k), _over(v, place), True) for k, v in node.items()]
    items = node if isinstance(node, list) else [node]
    return [(_label(item), _over(item, place), False) for item in items]


def _over(node: Any, place: str) -> dict[str, Any]:
    if node == OWN:
        return {}
    if isinstance(node, str) or isinstance(node, Mapping) and "name" in node:
        return {"sampler": node}
    if isinstance(node, Mapping):
        return dict(node)
    raise ConfigError(f"{place}: expected a sampler (a name, or a block with 'name'), got {node!r}")


def _label(node: Any) -> str:
    return str(node.get("name")) if isinstance(node, Mapping) else str(node)


def _examples(config: RunConfig, arguments: argparse.Namespace) -> list[Example]:
    """``--limit`` of each task of the file, or those asked for."""
    from ttt.eval.inputs import read_files

    found = [e for some in read_files([arguments.examples], 0, {t.label for t in config.tasks}).values() for e in some]
    if arguments.uid:
        by_uid = {e.uid: e for e in found}
        for uid in arguments.uid:
            if uid not in by_uid:
                raise DataError(f"{arguments.examples}: no example with uid {uid!r}")
        return [by_uid[u] for u in arguments.uid]
    seen: dict[str, int] = {}
    kept = []
    for e in found:
        seen[e.task] = seen.get(e.task, 0) + 1
        if not arguments.limit or seen[e.task] <= arguments.limit:
            kept.append(e)
    if not kept:
        raise DataError(f"{arguments.examples}: holds no example")
    return kept


def _prompt(config: RunConfig, example: Example) -> Example:
    return {t.label: t for t in config.tasks}[example.task].prompt(example)


def _decode(
    model: LanguageModel, contenders: Mapping[str, RunConfig], prompts: Mapping[str, Example], draws: int
) -> dict[str, list[Answered]]:
    from ttt.data.encode import encode_example
    from ttt.inspection.samplers import decode
    from ttt.types import Prompt

    asked = []
    for uid, example in prompts.items():
        stream = encode_example(example, model.tokenizer, open_answer=True)
        asked.append(Prompt.of(stream, uid))
    decoders = {name: Model(c, model).decoder() for name, c in contenders.items()}
    next(iter(decoders.values())).generate(asked[:1])  # the first call of a process is slow, whoever makes it
    answers = {}
    for name, decoder in decoders.items():
        answers[name] = decode(decoder, asked, draws, contenders[name].eval.batch_size)
        log.info("samplers: %s: %d answers", name, len(answers[name]))
    return answers


def _score(
    answers: Mapping[str, list[Answered]],
    prompts: Mapping[str, Example],
    model: LanguageModel,
    config: RunConfig,
    draws: Any,
) -> dict[str, list[Answered]]:
    from ttt.inspection.samplers import score_likelihood

    budget = max(1, config.data.batch_tokens)
    return {
        name: score_likelihood(some, prompts, model, config.objective, draws, config.run.seed, budget)
        for name, some in answers.items()
    }


def _report(
    config: RunConfig, contenders: Mapping[str, RunConfig], answers: Mapping[str, Sequence[Answered]],
    examples: Sequence[Example], checkpoint: Path, arguments: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    from ttt.eval.cards import git_state, hardware, versions
    from ttt.eval.inputs import settings_of
    from ttt.inspection.samplers import summarise

    rate = getattr(config.codec, "frame_rate_hz", None) if config.codec is not None else None
    return {
        "format": "ttt-samplers-1", "what": {name: one_line(c) for name, c in contenders.items()},
        "samplers": {name: summarise(some, rate, config.eval.bootstrap, config.run.seed) for name, some in answers.items()},
        "settings": {name: settings_of(c) for name, c in contenders.items()},
        "examples": arguments.examples, "uids": [e.uid for e in examples], "draws": arguments.draws,
        "likelihood_draws": arguments.likelihood_draws, "checkpoint": str(checkpoint), "versions": versions(),
        "git": git_state(), "hardware": hardware(),
    }  # fmt: skip


def one_line(config: RunConfig) -> str:
    """What a sampler is: its name and the fields that are not the default, and the text's temperature if it is drawn."""
    sampler = config.eval.sampler
    default = {f.name: to_plain(f.default) for f in dataclasses.fields(sampler)}
    given = {k: v for k, v in to_plain(sampler).items() if k != "name" and v != default.get(k)}
    given = {k: v["name"] if isinstance(v, Mapping) and v == {"name": v.get("name")} else v for k, v in given.items()}
    text = f"; text at temperature {config.eval.temperature:g}" if config.eval.temperature else ""
    name = name_of(sampler)
    fields = ", ".join(f"{k} {v}" for k, v in given.items() if v != default.get(k))
    return f"{name}: {fields or 'defaults'}{text}"


def side_by_side(answers: Mapping[str, Sequence[Answered]], examples: Sequence[Example], limit: int) -> str:
    """Answers to the first ``limit`` prompts, one sampler below the other; same answers of several draws told once."""
    width = max(map(len, (*answers, "wanted")))
    blocks = []
    for example in examples[:limit]:
        lines = [f"{example.uid} ({example.task})"]
        if example.turns[-1].role == "assistant":
            lines.append(f"  {'wanted':{width}}  {written(example.turns[-1].spans)}")
        for name, some in answers.items():
            counts: dict[str, int] = {}
            for a in some:
                if a.uid == example.uid:
                    said = written(a.made.spans) + (" [cut]" if a.made.stopped == "length" else "")
                    counts[said] = counts.get(said, 0) + 1
            for number, (said, times) in enumerate(counts.items()):
                lines.append(f"  {'' if number else name:{width}}  {said}" + (f"   (x{times})" if times > 1 else ""))
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


def _write(out: Path, report: Mapping[str, Any], answers: Mapping[str, Sequence[Answered]], shown: str) -> None:
    from ttt.inspection.samplers import markdown_table

    records = [
        {
            "sampler": name, "uid": a.uid, "draw": a.draw, "text": a.made.text, "codes": a.made.codes.tolist(),
            "calls": dict(a.made.calls), "seconds": a.made.seconds, "stopped": a.made.stopped,
            "nats": {k: v[0] for k, v in a.nats.items()} if a.nats is not None else None,
        }
        for name, some in answers.items() for a in some
    ]  # fmt: skip
    what = "".join(f"* {name}: {line}\n" for name, line in report["what"].items())
    text = f"# Samplers\n\n{len(report['uids'])} prompts, {report['draws']} answers each.\n\n{what}\n"
    text += f"{markdown_table(report['samplers'])}\n"
    text += f"\n## Answers\n\n```text\n{shown}\n```\n" if shown else ""
    with folder_aside(out) as partial:
        write_json_lines(partial / "answers.jsonl", records)
        write_text(partial / "samplers.md", text)
        write_json(partial / MARKER, report)
