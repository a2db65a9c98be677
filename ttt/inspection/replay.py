"""How an answer was decoded, network call by network call, as text in a terminal and as a picture."""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ttt.errors import ConfigError, DataError, suggest
from ttt.io.terminal import own_codes, visible

if TYPE_CHECKING:
    from ttt.sampling.trace.record import TraceRecord
    from ttt.sampling.trace.trace_frames import Cell, Frame

# A confidence in [0, 1] as a colour of the 256-colour palette (viridis, dark to bright) and as a shade of grey.
RAMP = (54, 61, 67, 73, 78, 149, 220)
SHADES, PLAIN_SHADES = "░▒▓█", ".:+#"
MASKED, REMASKED = "240", "203"  # colours


def replay(
    trace: str | Path, uid: str = "", *, speed: float = 8.0, width: int = 0, color: str = "auto", png: str = "",
    quiet: bool = False,
) -> None:  # fmt: skip
    """Show one answer of a trace file (default: the first) on standard output, and draw it to the file ``png`` if given.

    ``speed``: network calls shown a second (0: no pause); ``width``: columns (0: the terminal's); ``color``: auto, always or
    never; ``quiet``: the picture only.
    """
    from ttt.inspection.trace_plot import trace_picture
    from ttt.sampling.trace.record import read_trace
    from ttt.sampling.trace.trace_frames import frames

    if speed < 0 or width < 0:
        raise ConfigError(f"--speed and --width must be >= 0, got {speed:g} and {width}; --speed 0: no pause")
    picture = Path(png)
    if png and (picture.suffix != ".png" or picture.is_dir()):
        raise ConfigError(f"--png: name a .png file, got {png!r}")
    head, records = read_trace(trace)
    record = choose(records, uid, str(trace))
    if not quiet:
        out = own_codes(sys.stdout)
        colored = color == "always" or (color == "auto" and out.isatty() and "NO_COLOR" not in os.environ)
        columns = width or shutil.get_terminal_size((100, 24)).columns
        drawing = Drawing(head, record, max(columns, 20), colored, _can_draw(out))
        show(out, drawing, frames(record), speed, live=out.isatty())
    if not png:
        return
    try:
        drawn = trace_picture(record, head, picture)
    except OSError as error:
        raise ConfigError(f"--png: {picture}: {error.strerror}") from error
    if not drawn:
        raise DataError(f"{trace}: answer {record.uid!r} has no steps to draw")
    print(f"wrote {picture}", file=sys.stderr)


def answers(trace: str | Path) -> list[str]:
    """One line for each answer of a trace file."""
    from ttt.sampling.trace.record import read_trace

    return [
        f"{r.uid}  {len(r.ids)} tokens, {sum(r.calls.values())} calls, stopped: {r.stopped}"
        for r in read_trace(trace)[1]
    ]


def choose(records: list[TraceRecord], uid: str, where: str) -> TraceRecord:
    """The record of ``uid``, or the first.  Raises `DataError`."""
    if not records:
        raise DataError(f"{where}: no answers in this trace")
    for record in records:
        if record.uid == uid or not uid:
            return record
    names = [r.uid for r in records]
    raise DataError(
        f"{where}: no answer {uid!r}.{suggest(uid, names)} 'ttt replay {where} --list' names all {len(names)}"
    )


def show(out: TextIO, drawing: Drawing, pictures: Iterator[Frame], speed: float, live: bool) -> None:
    """Frames one over the other on a terminal (``live``); elsewhere one below the other and without pauses."""
    pause_s = 1 / speed if speed > 0 and live else 0.0
    height = 0
    out.write(drawing.legend() + "\n")
    try:
        if live:
            out.write("\x1b[?25l")  # no cursor
        for picture in pictures:
            lines = drawing.lines(picture)
            if live:
                lines = _fitting(lines)
                out.write(f"\x1b[{height}A\r\x1b[J" if height else "")
                height = len(lines)
            out.write("\n".join(lines) + "\n")
            out.flush()
            time.sleep(pause_s)
    finally:
        if live:
            out.write("\x1b[?25h")
            out.flush()


def _fitting(lines: list[str]) -> list[str]:
    """At most as many lines as the terminal has, the newest ones: the cursor cannot go back above the top of the screen."""
    most = max(shutil.get_terminal_size((100, 24)).lines - 2, 2)
    return lines if len(lines) <= most else [lines[0], *lines[len(lines) - most + 1 :]]


def _can_draw(out: TextIO) -> bool:
    try:
        (SHADES + "·×").encode(out.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


@dataclass
class Drawing:
    """Frames as lines of text.

    Text tokens are shown as text; an audio token is a block character, fuller (or brighter) with higher confidence.
    ``color``: use terminal colours; ``fancy``: use characters outside ASCII.
    """

    head: Mapping[str, Any]
    record: TraceRecord
    width: int = 100
    color: bool = False
    fancy: bool = True
    _scale: tuple[float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            vocabulary = self.head["vocabulary"]
            self._codes = range(vocabulary["code_start"], vocabulary["code_stop"])
            self._signs = {**dict.fromkeys(vocabulary["open"], "["), **dict.fromkeys(vocabulary["close"], "]"),
                           vocabulary["end"]: "."}  # fmt: skip
        except (KeyError, TypeError) as error:
            raise DataError(f"trace: the first line lacks {error}; write the trace again") from None
        self._scale = scale_of(self.record)

    def legend(self) -> str:
        """What the signs mean."""
        low, high = self._scale
        name = visible(str(self.head.get("confidence", {}).get("c") or "score"))
        shades = SHADES if self.fancy else PLAIN_SHADES
        signs = " ".join(
            self._paint(s, str(RAMP[(2 * i + 1) * len(RAMP) // (2 * len(shades))])) for i, s in enumerate(shades)
        )
        mask, back = ("·", "×") if self.fancy else ("_", "x")
        return (
            f"{visible(self.record.uid)}: {len(self.record.ids)} tokens in {sum(self.record.calls.values())} calls, stopped: "
            f"{visible(self.record.stopped)}\n{self._paint(mask, MASKED)} mask  {signs} audio, {name} {low:.2g} to {high:.2g}  "
            f"{self._paint(back, REMASKED)} masked again  [ ] span"
        )

    def lines(self, picture: Frame) -> list[str]:
        """One frame: a line of counts, then the answer, wrapped."""
        calls = sum(self.record.calls.values())
        masks = sum(cell.state in ("mask", "remasked") for cell in picture.cells)
        lines = [f"call {picture.call}/{calls}  final {picture.final}  masks {masks}"]
        line, used = "  ", 2
        for p, cell in enumerate(picture.cells):
            for sign in self._glyph(p, cell):
                cells = 2 if unicodedata.east_asian_width(sign) in "WF" else 0 if unicodedata.combining(sign) else 1
                if used + cells > self.width:
                    lines.append(line)
                    line, used = "  ", 2
                line += self._style(sign, cell)
                used += cells
        return [*lines, line] if used > 2 else lines

    def _glyph(self, position: int, cell: Cell) -> str:
        if cell.state in ("mask", "remasked"):
            sign = ("·", "×") if self.fancy else ("_", "x")
            return sign[cell.state == "remasked"]
        if cell.token in self._signs:
            return self._signs[cell.token]
        if cell.token in self._codes:
            shades = SHADES if self.fancy else PLAIN_SHADES
            return shades[min(int(self._share(cell) * len(shades)), len(shades) - 1)]
        record = self.record
        settled = position < len(record.ids) and record.ids[position] == cell.token
        words = record.pieces[position] if settled else record.spelling.get(cell.token, "?")
        # One place on the screen at least, and no control characters.
        words = "".join(c if c.isprintable() else " " for c in words) or ("" if settled else "?")
        return words if self.fancy else words.encode("ascii", "replace").decode()

    def _share(self, cell: Cell) -> float:
        """Confidence on the scale of this answer, in [0, 1]; 1 where there is none."""
        low, high = self._scale
        return 1.0 if cell.confidence is None else min(max((cell.confidence - low) / (high - low), 0.0), 1.0)

    def _style(self, sign: str, cell: Cell) -> str:
        if cell.state == "mask":
            return self._paint(sign, MASKED)
        if cell.state == "remasked":
            return self._paint(sign, REMASKED)
        color = RAMP[min(int(self._share(cell) * len(RAMP)), len(RAMP) - 1)]
        return self._paint(sign, f"{color}" if not cell.new else f"{color};1;4")

    def _paint(self, sign: str, style: str) -> str:
        return f"\x1b[38;5;{style}m{sign}\x1b[0m" if self.color else sign


def scale_of(record: TraceRecord) -> tuple[float, float]:
    """Least and greatest confidence to show: 0 to 1 for probabilities, else what the answer holds."""
    known = [c for c in record.confidence if c is not None]
    if not known or (min(known) >= 0 and max(known) <= 1):
        return 0.0, 1.0
    low, high = min(known), max(known)
    return (low, high) if high > low else (low, low + 1.0)
