"""A plug-in file to start from: signatures and promises out of `ttt.interfaces`, bodies that work where there is a sample."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator

from ttt.cli.plugin_samples import SAMPLES, Sample
from ttt.errors import ConfigError
from ttt.registry.core import Registry

_WIDTH = 112  # of docstrings, indented


def check_name(name: str, what: str) -> None:
    """Raise `ConfigError` unless ``name`` can stand in configurations and in code."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{what}: {name!r} must be small letters, digits and underscores, beginning with a letter")


def plugin_source(registry: Registry, name: str) -> str:
    """The source of a plug-in of ``registry`` under ``name``.

    Raises `ConfigError` for a name that cannot be one or is taken.
    """
    check_name(name, "plug-in name")
    if name in registry.names():
        taken = next(e.where for e in registry.entries() if e.name == name)
        raise ConfigError(f"{registry.title} {name!r} is registered already ({taken}); choose another name")
    base = registry.base
    sample = SAMPLES.get(registry.key, Sample(f"A {registry.title} to be written.", frozen=False))
    module = _module(base)
    methods = list(_methods(module, base, sample))
    body = [*([sample.members] if sample.members else []), *(source for source, _ in methods)]
    named = {n for _, names in methods for n in names} | {base.__name__} | _words(sample.members + sample.after)
    cls = "".join(part.capitalize() for part in name.split("_"))
    above, below = _imports(module, named, base.__name__, sample)
    constant = next(k for k, v in _families().items() if v is registry)
    lines = [
        f'"""The {registry.title} ``{name}``.', "", _hint(registry.key, name), '"""', "",
        "from __future__ import annotations", "", above, "", below,
        f'@{constant}.register("{name}")', f"@dataclass{'(frozen=True)' * sample.frozen}", f"class {cls}({base.__name__}):",
        textwrap.indent(f'"""{sample.says}\n\n{_promise(base)}\n"""', "    "), "",
        textwrap.indent("\n\n".join(body), "    "),
        *(["", "", sample.after] if sample.after else []),
    ]  # fmt: skip
    text = "\n".join(lines).replace("@NAME@", name).replace("@CLASS@", cls)
    return re.sub(r"[ \t]+\n", "\n", text).rstrip("\n") + "\n"


def _hint(key: str, name: str) -> str:
    from ttt.check.core import MODULES

    verb = f"ttt check {key} {name}" if key in MODULES else f"ttt list {key}"
    return f"Try it: ``{verb} --plugins THIS_FILE``."


def _families() -> dict[str, Registry]:
    """Name in `ttt.registry.families` -> registry."""
    from ttt.registry import families

    return {k: v for k, v in vars(families).items() if isinstance(v, Registry)}


def _module(base: type) -> ast.Module:
    return ast.parse(inspect.getsource(inspect.getmodule(base)))  # type: ignore[arg-type]


def _methods(module: ast.Module, base: type, sample: Sample) -> Iterator[tuple[str, set[str]]]:
    """(source, names its signature uses) of every abstract method, and of every further one the sample has a body for."""
    cls = next(n for n in module.body if isinstance(n, ast.ClassDef) and n.name == base.__name__)
    for node in cls.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        decorators = [ast.unparse(d) for d in node.decorator_list]
        if "abstractmethod" not in decorators and node.name not in sample.bodies:
            continue
        kept = [d for d in decorators if d != "abstractmethod"]
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        doc = ast.get_docstring(node) or ""
        body = sample.bodies.get(node.name, f'raise NotImplementedError("{node.name}: not written yet")')
        source = [
            *(f"@{d}" for d in kept), f"def {node.name}({_arguments(node)}){returns}:",
            textwrap.indent(f'"""{doc}"""' if "\n" not in doc else f'"""{doc}\n"""', "    "), textwrap.indent(body, "    "),
        ]  # fmt: skip
        used = {n.id for part in [node.args, node.returns] if part for n in ast.walk(part) if isinstance(n, ast.Name)}
        yield "\n".join(source), used


def _arguments(node: ast.FunctionDef) -> str:
    """The parameters as the formatter would write them."""
    return re.sub(r"(: [^=,]+)=", r"\1 = ", ast.unparse(node.args)).replace("'", '"')


def _imports(module: ast.Module, named: set[str], base: str, sample: Sample) -> tuple[str, str]:
    """(imports that run, imports for the type checker) of the names that signatures use, as the interfaces get them."""
    given = _bound(ast.parse(sample.imports))
    where: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            where.update({a.asname or a.name: f"from {node.module} import {a.name}" for a in node.names})
        elif isinstance(node, ast.Import):
            where.update(
                {a.asname or a.name: f"import {a.name}" + (f" as {a.asname}" if a.asname else "") for a in node.names}
            )
        elif isinstance(node, (ast.ClassDef, ast.Assign)):
            names = (
                [node.name]
                if isinstance(node, ast.ClassDef)
                else [t.id for t in node.targets if isinstance(t, ast.Name)]
            )
            where.update({n: f"from ttt.interfaces import {n}" for n in names})
    needed = {n: where[n] for n in named - given if n in where and n != base}
    standard = sorted({v for v in needed.values() if _origin(v) in ("collections", "typing", "pathlib")})
    classes = sorted(
        {base, *(n for n in needed if needed[n] == f"from ttt.interfaces import {n}" and n in _words(sample.after))}
    )
    typed = sorted({v for n, v in needed.items() if v not in standard and n not in classes})
    constant = next(k for k, v in _families().items() if v.base.__name__ == base)
    ours = [
        f"from ttt.interfaces import {', '.join(classes)}", f"from ttt.registry.families import {constant}",
        *(line for line in sample.imports.splitlines() if line.startswith("from ttt")),
    ]  # fmt: skip
    foreign = [line for line in sample.imports.splitlines() if line and not line.startswith("from ttt")]
    if typed:
        standard = [*standard, "from typing import TYPE_CHECKING"]
    blocks = [_merged(["from dataclasses import dataclass", *standard]), _merged(foreign), _merged(ours)]
    above = "\n\n".join(b for b in blocks if b)
    typed_own = [line for line in typed if _origin(line) == "ttt"]
    typed_blocks = [_merged([line for line in typed if line not in typed_own]), _merged(typed_own)]
    below = textwrap.indent("\n\n".join(b for b in typed_blocks if b), "    ")
    return above, f"if TYPE_CHECKING:\n{below}\n\n" if typed else ""


def _origin(line: str) -> str:
    return line.split()[1].split(".")[0]


def _bound(tree: ast.Module) -> set[str]:
    return {a.asname or a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}


def _words(source: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", source))


def _merged(lines: list[str]) -> str:
    """Import lines sorted, names from one module on one line."""
    plain, by_module = [], dict[str, set[str]]()
    for line in lines:
        if line.startswith("import "):
            plain.append(line)
        else:
            _, module, _, names = line.split(" ", 3)
            by_module.setdefault(module, set()).update(n.strip() for n in names.split(","))
    froms = [f"from {m} import {', '.join(sorted(names, key=_order))}" for m, names in sorted(by_module.items())]
    return "\n".join([*sorted(set(plain)), *froms])


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as isort has it."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _promise(base: type) -> str:
    """The interface's docstring: what every plug-in of the family promises."""
    return "\n\n".join(
        textwrap.fill(" ".join(p.split()), _WIDTH) for p in (inspect.getdoc(base) or "").split("\n\n")
    )  # fmt: skip
