#!/usr/bin/env python3
"""Write docs/plugins.md and docs/configuration.md from the code (``make docs``); tests/docs compares them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEADER = """# Plug-ins

Generated from the registries by `make docs`. A plug-in is one decorated (frozen) dataclass that derives from its
family's base in [`ttt/interfaces.py`](../ttt/interfaces.py); its fields are its configuration:

```yaml
objective: {name: ttt, noise: {name: polynomial, power: 3}, strategies: [{name: sst, p: 0.5}]}
```

A plug-in is loaded when its file or module is listed under `plugins:` in a recipe, given with `--plugins`, or
installed under the entry-point group `ttt.plugins`. Names are permanent, because checkpoints contain them.
[`examples/plugin`](../examples/plugin/README.md) is a project to copy: a mask, a schedule, a sampler, a task, an
architecture, and a plug-in in a single file. `ttt new plugin FAMILY NAME FILE.py` writes a file to start from
([tools.md](tools.md)).

## Check a plug-in

`ttt check FAMILY NAME [field=value ...] [--plugins FILE]` tests the properties that every plug-in of a family must
have, one line each, in some seconds and without training. It supports mask, noise (also called schedule), weighting,
strategy, rate, constraint, pattern, objective, sampler, remask, length, codec, task, metric, converter and arch. The other
families have no checks. A broken property shows a counter-example; for a mask it is drawn, with `X` at the wrong cell:

```
$ ttt check mask forgets_documents --plugins mine.py
  FAILED  documents    no position looks into another packed document
          counter-example: row 0: text position 38 (document 1) sees text position 0 (document 0): another document; ...
broken: documents
```

Exit code 0: all hold; 1: one is broken; 2: the command was wrong. `-` marks properties that a plug-in does not claim.
A plug-in claims more by setting attributes: a mask `looks_ahead` (which positions attend to later ones) and
`text_sees_future`, a schedule `ends`, a sampler `most_calls`, a codec `exact_stream`, a strategy `shapes_canvas` (it
defines what an example is, as `answer_padding` and `end_padding` do, so validation applies it too). The built-in
plug-ins go through the same checks in `tests/contract`. A mask is drawn for any example with `ttt show ... --png
FILE`.

"""


CONFIGURATION = """# Configuration keys

Generated from the schema ([`ttt/config/schema.py`](../ttt/config/schema.py)) and the plug-ins by `make docs`. `ttt config
--explain [KEY]` prints the same: `ttt config --explain train.lr`, `ttt config --explain eval.sampler.blockwise`.

A default of `???` has to be set by those verbs that need the key. Choices and ranges are checked when a configuration is
loaded; numbers are finite. A key that holds a plug-in takes its name, or a block with `name` and the plug-in's own keys.

Text is taken as it is written, in files and on the command line: `run.dir=2026_01_30`, `run.dir=001` and `eval.note=no` are
these words, not what YAML would make of them. Quotes around the whole of a value are taken off, `${section.key}` stands for
another key's value, and on the command line nothing else has a meaning in text. Everything else is read by YAML.

`train.steps` and `train.epochs` both say how long a run is. A file, or the command line, gives one of them; where several
files give one each, the last counts, which is logged.

"""


def main() -> int:
    """Write the pages."""
    root = Path(__file__).resolve().parents[1]
    listed = subprocess.run(
        [sys.executable, "-m", "ttt", "list", "--markdown"], capture_output=True, text=True, cwd=root
    )
    if listed.returncode:
        print(listed.stderr, file=sys.stderr)
        return listed.returncode
    (root / "docs/plugins.md").write_text(HEADER + listed.stdout.rstrip() + "\n")
    (root / "docs/configuration.md").write_text(configuration_page())
    return 0


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from ttt.config.explain import markdown

    return CONFIGURATION + markdown()


if __name__ == "__main__":
    sys.exit(main())
