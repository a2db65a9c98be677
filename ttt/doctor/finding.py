"""What a check found, and the names of the classic mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OK, NOTE, SKIP, WARN, FAULT = "ok", "note", "skip", "warn", "FAULT"
# Loss terms by the distance from the position whose logits are used to the one that is predicted.
SHIFTS = {"ar": 1, "nar": 0}
SHIFTED, WRONG_MASK, PAD, NO_INVERSE_P, CAUSAL, FROZEN, LEAK = (
    "shifted labels", "wrong mask id", "pad in the loss", "missing 1/p", "causal mask in a diffusion span", "frozen new rows",
    "the answer is visible",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One check: its name, how it came out (ok, note, skip, warn, FAULT), what was seen, and the likely fault."""

    name: str
    status: str
    text: str
    fault: str = ""

    def line(self) -> str:
        """``FAULT batch/targets   shifted labels: ...``."""
        return f"{self.status:5}  {self.name:22}  {f'{self.fault}: ' if self.fault else ''}{self.text}"


def faults(findings: Sequence[Finding]) -> list[str]:
    """Names of the faults, each once."""
    return list(dict.fromkeys(f.fault or f.name for f in findings if f.status == FAULT))


def as_text(run: Path, findings: Sequence[Finding]) -> str:
    """One line for each finding, then the faults."""
    named = faults(findings)
    count = f"{len(named)} fault{'s' * (len(named) != 1)}: {'; '.join(named)}" if named else "no fault found"
    return "\n".join([*(f.line() for f in findings), f"{run}: {count}"])


def as_json(run: Path, findings: Sequence[Finding]) -> str:
    """The same as JSON."""
    report = {"run": str(run), "faults": faults(findings), "findings": [asdict(f) for f in findings]}
    return json.dumps(report, indent=1, ensure_ascii=False)
