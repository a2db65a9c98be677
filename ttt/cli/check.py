"""Check that a plug-in keeps its family's promises (data files: 'ttt data check').

One line per property, with a counter-example under each that is broken.  Exit code 1 when one is.
"""

from __future__ import annotations

import argparse
import textwrap

from ttt.cli.common import add_common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which plug-in, with which fields."""
    families = "mask, noise (or schedule), weighting, strategy, objective, sampler, remask, length, codec, task, metric, "
    families += "converter, rate, constraint, arch"
    parser.add_argument("family", metavar="FAMILY", help=families)
    parser.add_argument("name", metavar="NAME", help="registered name (see 'ttt list FAMILY')")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="fields of the plug-in")
    add_common(parser, "plugins")


def run(arguments: argparse.Namespace) -> int:
    """Check, and print the outcome of every property."""
    from ttt.check.core import check, family_key
    from ttt.config.load import read_layers, to_plain
    from ttt.registry.core import family
    from ttt.registry.plugins import load_plugins

    key = family_key(arguments.family)
    load_plugins(arguments.plugins)
    registry = family(key)
    settings = read_layers([], arguments.overrides, registry.get(arguments.name, key))
    plugin = registry.build({"name": arguments.name, **settings}, key)
    entry = next(e for e in registry.entries() if e.name == arguments.name)
    fields = {k: v for k, v in to_plain(plugin).items() if k != "name"}
    print(f"{key} {arguments.name!r} {fields}\n{entry.where}")
    results = check(key, plugin)
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
