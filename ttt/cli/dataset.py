"""``ttt data``: convert foreign formats, encode their sound files, check files, pack them into a store.

The verbs that cut and look are in `ttt.cli.dataset_looks`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.cli.common import spelled
from ttt.errors import ConfigError
from ttt.stage import Stage

if TYPE_CHECKING:
    from ttt.data.audit import Audit
    from ttt.data.tally import FileReport

log = logging.getLogger(__name__)
FAILABLE = ("duplicates", "overlap", "warnings")


def data(arguments: argparse.Namespace) -> int:
    """Run one of the verbs below ``ttt data``."""
    from ttt.cli.dataset_looks import show, split, stats

    verbs = {
        "convert": convert, "encode": encode, "check": check, "split": split, "stats": stats, "show": show, "pack": pack,
    }  # fmt: skip
    return verbs[arguments.data_verb](arguments)


def convert(arguments: argparse.Namespace) -> int:
    """A foreign format -> examples JSONL, or -> a corpus folder (manifest, items, cut wavs)."""
    from ttt.config.load import read_layers, to_plain
    from ttt.data.convert.core import Report, inputs_of, results, write_records
    from ttt.data.convert.corpus import write_corpus
    from ttt.registry.core import family
    from ttt.registry.plugins import load_plugins

    load_plugins(arguments.plugins)
    name = spelled(arguments.format, family("converter").names())
    tasks = [t for t in arguments.tasks if "=" not in t]  # --tasks takes all words that follow it, settings too
    settings_given = [*arguments.overrides, *(t for t in arguments.tasks if "=" in t)]
    converter = family("converter").build({"name": name, **read_layers([], settings_given)}, "--from")
    source, out = Path(arguments.input), Path(arguments.output)
    sources = inputs_of(source)
    source = sources[0] if len(sources) == 1 else source
    examples = converter.makes == "examples"
    if len(sources) > 1 and not examples:
        raise ConfigError(f"{source}: {arguments.format!r} makes a corpus of one input; name one folder or file")
    marker = out.with_suffix(".convert.done.json") if examples else out / f"{arguments.split}.convert.done.json"
    outputs = [out / f"{arguments.split}.jsonl", out / f"{arguments.split}.items.jsonl"]
    if examples:
        outputs = [out.with_suffix(".json") if arguments.shard else out]
    if examples and out.suffix != ".jsonl":
        raise ConfigError(f"{out}: {arguments.format!r} makes examples; name a .jsonl file to write")
    settings = {"converter": to_plain(converter), "skip_bad": arguments.skip_bad, "limit": arguments.limit}
    if arguments.shard < 0 or (arguments.shard and not examples):
        raise ConfigError(f"--shard: {arguments.shard}; a number of examples, where the format makes examples")
    settings |= {"shard": arguments.shard} if arguments.shard else {}
    if not examples:
        settings |= {"split": arguments.split, "tasks": tasks}
    if len(sources) > 1:  # like a folder: names and sizes; reading a whole collection to know it would cost too much
        settings["inputs"] = [[str(p), p.stat().st_size] for p in sources]
    known = sources if len(sources) == 1 else []
    stage = Stage("data convert", marker, known, outputs, settings, "name the data to convert")
    if stage.is_done(arguments.overwrite):
        return 0
    started = time.perf_counter()
    if examples:
        report = Report()
        made = results(converter, sources, report, skip_bad=arguments.skip_bad, limit=arguments.limit)
        write_records(made, out, arguments.shard)
    else:
        report = write_corpus(
            converter, source, out, arguments.split, tasks, reads_text=_reads_text(tasks),
            skip_bad=arguments.skip_bad, limit=arguments.limit,
        )  # fmt: skip
    report.seconds = time.perf_counter() - started
    stage.finish({**asdict(report), "skipped": dict(report.skipped)}, report.seconds)
    _log_skipped(report.first_skipped)
    log.info("convert: %s -> %s: %s", source, out, report.summary())
    return 0


def _reads_text(tasks: Sequence[str]) -> set[str]:
    """Those that need the words of their utterances; a name that no task has may be that of any (a recipe's ``items``)."""
    from ttt.registry.core import family

    known = family("task")
    return {t for t in tasks if t not in known.names() or known.get(t).reads_text}  # type: ignore[attr-defined]


def encode(arguments: argparse.Namespace) -> int:
    """Sound files in an examples file -> codes of the configured codec."""
    from ttt.cli.common import configure
    from ttt.config.load import to_plain
    from ttt.data.convert.core import Report, write_records
    from ttt.data.convert.encode import encode_records

    config = configure(arguments, ("codec",))
    source, out = Path(arguments.input), Path(arguments.output)
    if out.suffix != ".jsonl" or out.resolve() == source.resolve():
        raise ConfigError(f"{out}: name another .jsonl file to write")
    codec = config.codec.load()
    settings = {"codec": codec.codec_id, "skip_bad": arguments.skip_bad, "fields": to_plain(config.codec)}
    stage = Stage(
        "data encode", out.with_suffix(".encode.done.json"), [source], [out], settings, "run 'ttt data convert' first"
    )
    if stage.is_done(arguments.overwrite):
        return 0
    started, report = time.perf_counter(), Report()
    write_records(encode_records(source, codec, report, batch=arguments.batch, skip_bad=arguments.skip_bad), out)
    report.seconds = time.perf_counter() - started
    stage.finish({**asdict(report), "skipped": dict(report.skipped), "codec": codec.codec_id}, report.seconds)
    _log_skipped(report.first_skipped)
    log.info("encode: %s -> %s: %s", source, out, report.summary())
    return 0


def pack(arguments: argparse.Namespace) -> int:
    """Examples files, mixes or stores -> one store of tokens that training maps into memory."""
    from ttt.data.mix import Source, is_mix, named, sources_of
    from ttt.data.pack import Settings
    from ttt.data.pack import pack as run

    out = Path(arguments.out)
    sources: list[Source] = [s for path in arguments.inputs for s in sources_of(path)]
    if len(arguments.inputs) > 1:
        sources = named(sources)
    settings = Settings(arguments.tokenizer, arguments.prompt_rule, arguments.literal_specials)
    if arguments.jobs < 1 or arguments.shard_tokens < 1:
        raise ConfigError("--jobs and --shard-tokens must be >= 1")
    inputs = [*dict.fromkeys([*(Path(p) for p in arguments.inputs if is_mix(p)), *(s.path for s in sources)])]
    stage = Stage(
        "data pack", out.with_name(f"{out.name}.pack.done.json"), [*inputs, Path(arguments.tokenizer)], [out / "store.json"],
        {**asdict(settings), "skip_bad": arguments.skip_bad, "shard_tokens": arguments.shard_tokens,
         "sources": [[s.name, s.ratio] for s in sources]},
    )  # fmt: skip
    if stage.is_done(arguments.overwrite):
        return 0
    store, report = run(
        sources, out, settings, jobs=arguments.jobs, skip_bad=arguments.skip_bad, shard_tokens=arguments.shard_tokens
    )
    stage.finish({"examples": len(store), "tokens": store.about["tokens"], "skipped": dict(report.bad)}, report.seconds)
    for reason, n in report.bad.most_common():
        log.warning("pack: %d skipped: %s; first: %s", n, reason, report.first_bad[reason])
    speed = len(store) / max(report.seconds, 1e-9)
    log.info(
        "pack: %d examples, %d tokens in %d shards, %.1f s (%.0f examples/s) -> %s",
        len(store), store.about["tokens"], len(store.about["shards"]), report.seconds, speed, out,
    )  # fmt: skip
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Examine data files.  Exit code 1 when a record is broken (or what ``--fail-on`` names was found)."""
    from ttt.data.audit import Settings, audit
    from ttt.text.tokenizer import TextTokenizer

    unknown = set(arguments.fail_on) - set(FAILABLE)
    if unknown:
        raise ConfigError(f"--fail-on: {sorted(unknown)[0]!r} is none of {', '.join(FAILABLE)}")
    rate = arguments.frame_rate
    if min(arguments.words, arguments.codes, arguments.jobs) < 1 or not (rate is None or rate > 0):
        raise ConfigError("--words, --codes, --jobs must be >= 1 and --frame-rate > 0")
    if rate is None and arguments.tokenizer:
        rate = TextTokenizer.load(arguments.tokenizer).vocab.frame_rate_hz
    settings = Settings(
        arguments.tokenizer, arguments.num_codes, rate or Settings.frame_rate_hz, arguments.row_tokens, arguments.words,
        arguments.codes, arguments.literal_specials,
    )  # fmt: skip
    report = audit(arguments.inputs, arguments.test, settings, arguments.jobs)
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=False) if arguments.json else _page(report))
    found = {
        "duplicates": report.duplicates["both"]["examples"], "overlap": (report.overlap or {}).get("either", 0),
        "warnings": sum(sum(f.warnings.values()) for f in (*report.files, *report.test_files)),
    }  # fmt: skip
    return 1 if report.errors or any(found[name] for name in arguments.fail_on) else 0


def _page(report: Audit) -> str:
    lines: list[str] = []
    for title, files in (("data", report.files), ("test", report.test_files)):
        for file in files:
            lines += _file_lines(title, file, report.settings.frame_rate_hz)
    from ttt.data.tally import histogram, summary

    numbers = summary(report.lengths)
    if numbers["n"]:
        keys = ("mean", "std", "min", "p5", "p25", "p50", "p75", "p95", "p99", "max")
        lines += [f"length ({report.unit}): " + "  ".join(f"{k} {numbers[k]:.0f}" for k in keys)]
        bins = histogram(report.lengths)
        most = max(n for _, _, n in bins)
        width = len(str(bins[-1][1]))
        lines += [f"  {a:{width}d} .. {b:{width}d}  {'#' * round(48 * n / most):48}  {n}" for a, b, n in bins]
    for label, words in (("text", "the same text"), ("codes", "the same codes"), ("both", "the same text and codes")):
        found = report.duplicates[label]
        lines.append(f"duplicates: {found['examples']} examples have {words} as an earlier one")
        lines += [f"  {again} = {first}" for again, first in found["pairs"]]
    if report.overlap is not None:
        n, s = report.overlap["test_examples"], report.settings
        share = report.overlap["either"] / n if n else 0.0
        lines.append(f"overlap: {report.overlap['either']} of {n} test examples ({share:.1%}) are in the data")
        for name, what in (("text", f"{s.words} words in a row"), ("codes", f"{s.codes} frames in a row")):
            found = report.overlap[name]
            lines.append(f"  by {name} ({what}, or a shorter whole): {found['examples']}")
            lines += [f"    {a} ~ {b}" for a, b in found["pairs"]]
    lines.append(f"{report.errors} errors" if report.errors else "no errors")
    return "\n".join(lines)


def _file_lines(title: str, file: FileReport, frame_rate_hz: float) -> Sequence[str]:
    hours = file.frames / frame_rate_hz / 3600
    spans = ", ".join(f"{n} {style}" for style, n in file.styles.most_common()) or "none"
    heard = f"{file.frames} frames = {hours:.2f} h at {frame_rate_hz:g} Hz"
    lines = [f"{title}: {file.path}", f"  {file.records} records, {file.examples} usable; {heard}; spans: {spans}"]
    for kind, counts in (("ERROR", file.errors), ("warning", file.warnings)):
        for reason, n in counts.most_common():
            lines.append(f"  {kind} {n} x {reason}")
            lines += [f"    {message}" for message in file.shown[reason]]
    return lines


def _log_skipped(first: dict[str, Any]) -> None:
    for message in first.values():
        log.warning("skipped, for example: %s", message)
