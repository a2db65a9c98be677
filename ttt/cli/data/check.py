"""Find broken records, duplicates, overlap with test data (plug-ins: 'ttt check').

Rows of another format: what their columns hold and lack; with --from FORMAT, what its converter would refuse.
Exit code 1 when a record is broken, or when something that --fail-on names was found.
"""

from __future__ import annotations

import argparse
import json

FAILABLE = ("duplicates", "overlap", "warnings")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which files, compared with which, by what measure."""
    add_inputs(parser)
    parser.add_argument("--from", dest="format", default="", metavar="FORMAT", help="rows of this converter's format")
    parser.add_argument(
        "--test", nargs="+", default=[], metavar="DATA", help="test data that must not be in the others"
    )
    parser.add_argument(
        "--num-codes", type=int, default=0, metavar="N", help="size of the codebook, if no --tokenizer is given"
    )
    parser.add_argument(
        "--frame-rate", type=float, metavar="HZ",
        help="frames of a second of audio (default: what the tokenizer's vocab.json says, else 12.5)",
    )  # fmt: skip
    parser.add_argument("--row-tokens", type=int, default=0, metavar="N", help="count examples that are longer")
    parser.add_argument(
        "--words", type=int, default=13, metavar="N", help="words in a row that make an overlap (default 13)"
    )
    parser.add_argument(
        "--codes", type=int, default=26, metavar="N", help="frames in a row that make an overlap (default 26)"
    )
    parser.add_argument(
        "--fail-on", nargs="+", default=[], metavar="WHAT", help=f"also exit with 1 on: {' '.join(FAILABLE)}"
    )
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    add_tokenizer(parser)
    add_jobs(parser)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The data that is looked at."""
    parser.add_argument("inputs", nargs="+", metavar="DATA", help="examples (.jsonl, .json, .parquet), stores or mixes")


def add_tokenizer(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The tokenizer, and how strictly it reads text."""
    parser.add_argument("--tokenizer", required=required, default="", metavar="DIR", help="folder with tokenizer.json")
    parser.add_argument(
        "--literal-specials", action="store_true", help="text may spell special tokens, as in the reference"
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Number of processes."""
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (the result is the same)")


def run(arguments: argparse.Namespace) -> int:
    """Examine the files and print the report."""
    from ttt.data.reports.audit import Settings, audit
    from ttt.data.reports.raw import columns_page, header, raw_and_examples
    from ttt.data.reports.text import page
    from ttt.errors import ConfigError
    from ttt.text.tokenizer import TextTokenizer

    unknown = sorted(set(arguments.fail_on) - set(FAILABLE))
    if unknown:
        raise ConfigError(f"--fail-on: {unknown[0]!r} is none of {', '.join(FAILABLE)}")
    rate = arguments.frame_rate
    if min(arguments.words, arguments.codes, arguments.jobs) < 1 or not (rate is None or rate > 0):
        raise ConfigError("--words, --codes, --jobs must be >= 1 and --frame-rate > 0")
    if rate is None and arguments.tokenizer:
        rate = TextTokenizer.load(arguments.tokenizer).vocab.frame_rate_hz
    if arguments.format:
        return _check_rows(arguments)
    raw, inputs = raw_and_examples(arguments.inputs)
    faulty = 0
    for path in raw:
        text, lacking = columns_page(path)
        faulty += lacking
        print(f"{header(path)}\n{text}\n{lacking} rows lack a value; whether they can be used: ttt data check --from FORMAT")
    if not inputs:
        return int(faulty > 0)
    settings = Settings(
        arguments.tokenizer, arguments.num_codes, rate or Settings.frame_rate_hz, arguments.row_tokens, arguments.words,
        arguments.codes, arguments.literal_specials,
    )  # fmt: skip
    report = audit(inputs, arguments.test, settings, arguments.jobs)
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=False) if arguments.json else page(report))
    counts = {
        "duplicates": report.duplicates["both"]["examples"], "overlap": (report.overlap or {}).get("either", 0),
        "warnings": sum(sum(f.warnings.values()) for f in (*report.files, *report.test_files)),
    }  # fmt: skip
    return 1 if faulty or report.errors or any(counts[name] for name in arguments.fail_on) else 0


def _check_rows(arguments: argparse.Namespace) -> int:
    """Convert every row, write nothing, count what is refused."""
    from ttt.cli.data.convert import spelled
    from ttt.data.convert.core import Report, inputs_of, results
    from ttt.errors import ConfigError
    from ttt.registry.families import CONVERTER

    converter = CONVERTER.build({"name": spelled(arguments.format, CONVERTER.names())}, "--from")
    if converter.makes != "examples":
        raise ConfigError(f"--from: {arguments.format!r} makes a corpus of recordings; 'ttt data convert' checks them")
    report = Report()
    for _ in results(converter, [file for path in arguments.inputs for file in inputs_of(path)], report, skip_bad=True):
        pass
    print(report.summary().replace("written", "usable"))
    for message in report.first_skipped.values():
        print(f"  {message}")
    return int(bool(report.skipped) or not report.written)
