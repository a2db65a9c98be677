"""``ttt check FAMILY NAME``: does a plug-in keep what its family promises?"""

from __future__ import annotations

import argparse
import textwrap


def check(arguments: argparse.Namespace) -> int:
    """One line per property; a counter-example under each that is broken.  Exit code 1 when one is."""
    from ttt.check.core import check as run
    from ttt.check.core import family_key
    from ttt.config.load import read_layers, to_plain
    from ttt.registry.core import family
    from ttt.registry.plugins import load_plugins

    key = family_key(arguments.family)
    load_plugins(arguments.plugins)
    registry = family(key)
    plugin = registry.build({"name": arguments.name, **read_layers([], arguments.overrides)}, key)
    entry = next(e for e in registry.entries() if e.name == arguments.name)
    fields = {k: v for k, v in to_plain(plugin).items() if k != "name"}
    print(f"{key} {arguments.name!r} {fields}\n{entry.where}")
    results = run(key, plugin)
    width = max(len(r.name) for r in results)
    for r in results:
        print(f"  {r.outcome:6}  {r.name:{width}}  {r.says}")
        if r.failed:
            print(f"{'':10}counter-example: {r.counter}")
        elif r.counter:
            print(f"{'':10}not checked: {r.counter}")
        if r.drawing:
            print(textwrap.indent(r.drawing, " " * 10))
    broken = [r.name for r in results if r.failed]
    held = sum(r.outcome == "ok" for r in results)
    print(f"broken: {', '.join(broken)}" if broken else f"all {held} properties hold")
    return 1 if broken else 0
