"""Reports on data files as text: `ttt.data.reports.audit` and `ttt.data.reports.lengths` for people."""

from __future__ import annotations

from collections.abc import Sequence

from ttt.data.batches.long_examples import context
from ttt.data.reports.audit import Audit
from ttt.data.reports.facts import FileReport
from ttt.data.reports.lengths import Lengths, histogram, summary

ROWS = (("tokens", "tokens"), ("targets", "learned"), ("speech", "codes"), ("seconds", "speech s"))
COLUMNS = ("n", "mean", "p50", "std", "min", "max", "p25", "p75", "p95", "p99")


def page(report: Audit) -> str:
    """What `ttt.data.reports.audit.audit` found, for people: files, lengths, duplicates, overlap."""
    lines: list[str] = []
    for title, files in (("data", report.files), ("test", report.test_files)):
        for file in files:
            lines += _file_lines(title, file, report.settings.frame_rate_hz)
    numbers = summary(report.lengths)
    if numbers["n"]:
        keys = ("mean", "std", "min", "p5", "p25", "p50", "p75", "p95", "p99", "max")
        lines += [f"length ({report.unit}): " + "  ".join(f"{k} {numbers[k]:.0f}" for k in keys)]
        bins = histogram(report.lengths)
        largest = max(n for _, _, n in bins)
        width = len(str(bins[-1][1]))
        lines += [f"  {a:{width}d} .. {b:{width}d}  {'#' * round(48 * n / largest):48}  {n}" for a, b, n in bins]
    for label, words in (("text", "the same text"), ("codes", "the same codes"), ("both", "the same text and codes")):
        repeated = report.duplicates[label]
        lines.append(f"duplicates: {repeated['examples']} examples have {words} as an earlier one")
        lines += [f"  {again} = {first}" for again, first in repeated["pairs"]]
    if report.overlap is not None:
        n, s = report.overlap["test_examples"], report.settings
        share = report.overlap["either"] / n if n else 0.0
        lines.append(f"overlap: {report.overlap['either']} of {n} test examples ({share:.1%}) are in the data")
        for name, what in (("text", f"{s.words} words in a row"), ("codes", f"{s.codes} frames in a row")):
            shared = report.overlap[name]
            lines.append(f"  by {name} ({what}, or a shorter whole): {shared['examples']}")
            lines += [f"    {a} ~ {b}" for a, b in shared["pairs"]]
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


def lengths_page(lengths: Lengths, contexts: Sequence[int], codes_hz: float) -> str:
    """Lengths of examples, and what each context length would cut, for people."""
    numbers = lengths.as_json((), codes_hz)
    lines = ["".join([f"{'':9}", *(f"{'median' if c == 'p50' else c:>9}" for c in COLUMNS)])]
    for key, name in ROWS:
        if key in numbers:
            digits = 2 if key == "seconds" else 0
            cells = (f"{numbers[key][c]:9.{0 if c == 'n' else digits}f}" for c in COLUMNS)
            lines.append("".join([f"{name:9}", *cells]))
    lines.append(f"{numbers['tokens']['sum']:,} tokens, {numbers['targets']['sum']:,} of them learned")
    return "\n".join([*lines, *(context(lengths.tokens, c).line() for c in contexts)])
