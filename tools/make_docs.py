#!/usr/bin/env python3
"""Write docs/plugins.md from the registries (``make docs``); tests/docs compares it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEADER = """# Plug-ins

Generated from the registries by `make docs`. A plug-in is one decorated (frozen) dataclass that derives from its family's base
in [`ttt/interfaces.py`](../ttt/interfaces.py); its fields are its configuration:

```yaml
objective: {name: ttt, noise: {name: polynomial, power: 3}, strategies: [{name: sst, p: 0.5}]}
```

It is found when its file or module is listed under `plugins:` in a recipe, given with `--plugins`, or installed under the
entry-point group `ttt.plugins`. Names are for ever: checkpoints hold them.

"""


def main() -> int:
    """Write the page."""
    root = Path(__file__).resolve().parents[1]
    listed = subprocess.run(
        [sys.executable, "-m", "ttt", "list", "--markdown"], capture_output=True, text=True, cwd=root
    )
    if listed.returncode:
        print(listed.stderr, file=sys.stderr)
        return listed.returncode
    (root / "docs/plugins.md").write_text(HEADER + listed.stdout.rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
