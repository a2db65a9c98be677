"""How long one waits for an answer: the times of streamed answers, their percentiles, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttt.sampling.decoder.stream import StreamEvent

PERCENTILES = (50, 90, 99)
# Measure -> (its title in the table, digits).
MEASURES = {
    "first_text_s": ("first text, s", 3), "first_block_s": ("first audio block, s", 3),
    "first_sound_s": ("first sound, s", 3), "seconds": ("whole answer, s", 3), "sound_s": ("sound, s", 2),
    "rtf": ("real-time factor", 3), "stall_s": ("playback stalls, s", 3),
}  # fmt: skip


@dataclass
class Timing:
    """The times of one answer, in seconds from the question on; None where there was no such event.

    Time spent on printing and on writing files is not counted.  ``stall_s``: how long playback that began with the first
    sound would have had to wait for later pieces.
    """

    uid: str
    first_text_s: float | None = None
    first_block_s: float | None = None
    first_sound_s: float | None = None
    seconds: float = 0.0
    sound_s: float = 0.0
    stall_s: float | None = None
    pieces: int = 0
    tokens: int = 0
    calls: int = 0
    stopped: str = ""
    _played_until_s: float = field(default=0.0, repr=False)

    @property
    def rtf(self) -> float | None:
        """Real-time factor: time to answer per second of sound."""
        return self.seconds / self.sound_s if self.sound_s else None

    def add(self, event: StreamEvent, at_s: float) -> None:
        """Count an event that came at ``at_s``."""
        if event.kind == "text":
            self.first_text_s = at_s if self.first_text_s is None else self.first_text_s
        elif event.kind == "block":
            self.first_block_s = at_s if self.first_block_s is None else self.first_block_s
        elif event.kind == "sound" and event.samples is not None:
            duration_s = len(event.samples) / event.rate_hz
            if self.first_sound_s is None or self.stall_s is None:
                self.first_sound_s = self._played_until_s = at_s
                self.stall_s = 0.0
            wait_s = max(0.0, at_s - self._played_until_s)
            self.stall_s += wait_s
            self._played_until_s += wait_s + duration_s
            self.sound_s += duration_s
            self.pieces += 1
        elif event.kind == "end" and event.generation is not None:
            self.seconds, self.stopped = at_s, event.generation.stopped
            self.tokens, self.calls = len(event.generation.ids), event.calls


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all do not exceed (nearest rank): always one that was measured.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 50), percentile([3.0, 1.0, 2.0, 4.0], 99)
    (2.0, 4.0)
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def report(timings: Sequence[Timing], conditions: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Percentiles of every measure over the answers that have it, the answers themselves, and the conditions."""
    measures = {}
    for name in MEASURES:
        values = [v for t in timings if (v := getattr(t, name)) is not None and (name != "sound_s" or v)]
        if values:
            measures[name] = {
                "n": len(values), **{f"p{p}": percentile(values, p) for p in PERCENTILES}, "max": max(values),
            }  # fmt: skip
    rows = [{k: v for k, v in asdict(t).items() if not k.startswith("_")} | {"rtf": t.rtf} for t in timings]
    return {"measures": measures, "conditions": dict(conditions), "answers": rows, "environment": dict(environment)}


def table(found: Mapping[str, Any]) -> str:
    """A `report` as text."""
    heads = ("n", *(f"p{p}" for p in PERCENTILES), "max")
    lines = [f"{'':22}" + "".join(f"{h:>9}" for h in heads)]
    for name, (title, digits) in MEASURES.items():
        if name in found["measures"]:
            values = found["measures"][name]
            numbers = "".join(f"{values[h]:>9.{digits}f}" for h in heads[1:])
            lines.append(f"{title:22}{values['n']:>9}{numbers}")
    if min((m["n"] for m in found["measures"].values()), default=0) < 100:
        lines.append("nearest rank; below 100 answers p99 is the maximum")
    c, e = found["conditions"], found["environment"]
    lines.append(f"{c['answers_at_a_time']} answer at a time after {c['warmup']} for warming up; sampler {c['sampler']}; pieces of "
                 f"{','.join(map(str, c['chunk_frames'])) or 'no'} codes; codec {c['codec']}")  # fmt: skip
    lines.append(
        f"model {c['parameters'] / 1e6:.2f} M parameters, {c['dtype']} on {c['device']}; {e['threads']} thread(s), "
        f"{c['hardware']}; torch {e['packages'].get('torch', '?')}"
    )
    return "\n".join(lines)
