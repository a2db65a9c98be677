"""Convert a foreign format to examples, or to a corpus folder of recordings.

'ttt list converter' shows the formats; 'ttt new plugin converter NAME FILE.py' begins one of your own.
"""

from __future__ import annotations

import argparse
import glob
import logging
from collections.abc import Sequence
from pathlib import Path

from ttt.cli.common import add_common

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is converted, into what, how much of it."""
    parser.add_argument(
        "--from", dest="format", required=True, metavar="FORMAT", help="a converter (see 'ttt list converter')"
    )
    parser.add_argument("input", metavar="INPUT", help="file or folder in that format, or a glob of files in quotes")
    parser.add_argument("output", metavar="OUTPUT", help="examples .jsonl; a folder for recordings")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="fields of the converter")
    parser.add_argument("--limit", "--n-samples", type=int, default=0, metavar="N", help="first N rows only")
    parser.add_argument(
        "--shard", type=int, default=0, metavar="N", help="N examples a file: OUTPUT.0000.jsonl ..., OUTPUT.json"
    )
    parser.add_argument("--split", default="train", help="name of the manifest of a corpus (default: train)")
    parser.add_argument(
        "--tasks", nargs="+", default=["asr", "tts"], metavar="TASK", help="(default: asr tts; no text: continuation)"
    )
    add_skip_bad(parser)
    add_common(parser, "overwrite", "plugins")


def add_skip_bad(parser: argparse.ArgumentParser) -> None:
    """What happens to broken records."""
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave broken records out, counted, not stop at the first"
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert, and report what was skipped."""
    from ttt.config.load import read_layers, to_plain
    from ttt.data.convert.core import Report, inputs_of, results, write_records
    from ttt.data.convert.corpus import write_corpus
    from ttt.errors import ConfigError
    from ttt.io.outputs import refuse_inputs
    from ttt.registry.core import family
    from ttt.registry.plugins import load_plugins
    from ttt.stage import Stage

    load_plugins(arguments.plugins)
    name = spelled(arguments.format, family("converter").names())
    tasks = [t for t in arguments.tasks if "=" not in t]  # --tasks takes all words that follow it, settings too
    fields = [*arguments.overrides, *(t for t in arguments.tasks if "=" in t)]
    of_converter = read_layers([], fields, family("converter").get(name, "--from"))
    converter = family("converter").build({"name": name, **of_converter}, "--from")
    source, out = Path(arguments.input), Path(arguments.output)
    sources = inputs_of(source)
    source = sources[0] if len(sources) == 1 else source
    settings = {"converter": to_plain(converter), "skip_bad": arguments.skip_bad, "limit": arguments.limit}
    examples = converter.makes == "examples"
    if examples:
        marker, outputs = out.with_suffix(".convert.done.json"), [out.with_suffix(".json") if arguments.shard else out]
        if out.suffix != ".jsonl":
            raise ConfigError(f"{out}: {arguments.format!r} makes examples; name a .jsonl file to write")
    else:
        marker = out / f"{arguments.split}.convert.done.json"
        outputs = [out / f"{arguments.split}.jsonl", out / f"{arguments.split}.items.jsonl"]
        settings |= {"split": arguments.split, "tasks": tasks}
    if arguments.shard < 0 or (arguments.shard and not examples):
        raise ConfigError(f"--shard: {arguments.shard}; a number of examples, where the format makes examples")
    settings |= {"shard": arguments.shard} if arguments.shard else {}
    if len(sources) > 1:  # like a folder: names and sizes; reading a whole collection to know it would cost too much
        settings["inputs"] = [[str(p), p.stat().st_size] for p in sources]
    inputs = sources if len(sources) == 1 else []
    shards = sorted(out.parent.glob(f"{glob.escape(out.stem)}.[0-9]*.jsonl")) if arguments.shard else []
    for path in (*outputs, *shards):
        refuse_inputs(path, sources)
    also = shards if not marker.is_file() else []
    stage = Stage("data convert", marker, inputs, outputs, settings, "name the data to convert", also=also, named=examples)
    if stage.is_done(arguments.overwrite):
        return 0
    if examples:
        report = Report()
        made = results(converter, sources, report, skip_bad=arguments.skip_bad, limit=arguments.limit)
        write_records(made, out, arguments.shard)
    else:
        report = write_corpus(
            converter, source if len(sources) == 1 else sources, out, arguments.split, tasks,
            reads_text=tasks_that_read_text(tasks), reads_voice=tasks_that_read_voice(tasks), skip_bad=arguments.skip_bad,
            limit=arguments.limit,
        )  # fmt: skip
    report.seconds = stage.seconds
    stage.finish(vars(report))
    for message in report.first_skipped.values():
        log.warning("skipped, for example: %s", message)
    log.info("convert: %s -> %s: %s", source, out, report.summary())
    return 0


def tasks_that_read_text(tasks: Sequence[str]) -> set[str]:
    """Those that need the words of their utterances; an unknown name may be that of any task (a recipe's ``items``)."""
    from ttt.registry.core import family

    known = family("task")
    return {t for t in tasks if t not in known.names() or known.get(t).reads_text}  # type: ignore[attr-defined]


def tasks_that_read_voice(tasks: Sequence[str]) -> set[str]:
    """Those whose items name another recording of the speaker."""
    from ttt.registry.core import family

    known = family("task")
    return {t for t in tasks if t in known.names() and known.get(t).reads_voice}  # type: ignore[attr-defined]


def spelled(name: str, names: Sequence[str]) -> str:
    """The one of ``names`` that equals ``name`` but for hyphens, underscores and capitals; else ``name`` itself.

    >>> spelled("SlamOmni", ["sharegpt", "slam_omni"])
    'slam_omni'
    """

    def bare(text: str) -> str:
        return text.replace("-", "").replace("_", "").lower()

    alike = [n for n in names if bare(n) == bare(name)]
    return alike[0] if name not in names and len(alike) == 1 else name
