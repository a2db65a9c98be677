"""What a run writes down about how it was started."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command_line() -> str:
    """How this process was started, ready to paste and without the paths of this machine: ``ttt score --config ...``."""
    program = Path(sys.argv[0]).name or "python"
    return shlex.join(["ttt" if program == "__main__.py" else program, *sys.argv[1:]])
