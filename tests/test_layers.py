"""Who may import whom: a package imports only packages to its left.  Imports inside functions count too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    {"errors", "types", "interfaces", "rng", "packed_weights"}, {"io"}, {"registry"}, {"config"},
    {"text", "audio", "masks", "diffusion"},
    {"data", "model"}, {"objective"}, {"sampling"}, {"tasks"}, {"eval"}, {"train"}, {"stage"}, {"api"}, {"likelihood"},
    {"inspection", "doctor", "chat", "continuation", "answering"}, {"lab"}, {"textbench"}, {"check"}, {"bench", "scaffold"},
    {"cli"}, {"__main__"},
)  # fmt: skip
RANK = {name: level for level, names in enumerate(LAYERS) for name in names}
NOT_IDENTITY = {frozenset(("eval", "train"))}  # neither imports the other
# Where an expensive or fragile package may be imported: (inside functions, at module level); folders end with "/".
GUARDED = {
    "transformers": (
        ("text/", "model/", "audio/codecs/", "eval/judges.py", "eval/speakers.py", "eval/generative_perplexity.py"),
        ("model/cache.py",),
    ),  # fmt: skip
    "torchaudio": (("audio/signal.py",), ("audio/signal.py",)),
}
FILES = sorted((ROOT / "ttt").rglob("*.py"))


def owner(module: str) -> str:
    """``ttt.data.encode`` -> ``data``; ``ttt`` itself -> nothing."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path):
    """(line, module, at module level) of every import; ``from ttt import x`` counts as ``ttt.x``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"ttt.{a.name}" for a in node.names] if node.module == "ttt" else [node.module or ""]
        else:
            continue
        yield from ((node.lineno, name, id(node) not in inside) for name in names)


def wrong(path: Path) -> list[str]:
    here = path.relative_to(ROOT / "ttt").as_posix()
    me = owner("ttt." + here.removesuffix(".py").replace("/", "."))
    found = []
    for line, module, at_top in imports(path):
        place = f"ttt/{here}:{line} imports {module}"
        top = module.split(".")[0]
        if top in GUARDED:
            allowed = GUARDED[top][at_top]
            if not any(here.startswith(a) if a.endswith("/") else here == a for a in allowed):
                found.append(
                    f"{place}: {'at module level' if at_top else 'inside a function'} only in {', '.join(allowed)}"
                )
        if top != "ttt" or me == "__init__":
            continue
        other = owner(module)
        if other in ("", "__version__", me):
            continue
        if other not in RANK or me not in RANK:
            found.append(f"{place}: give {other if other not in RANK else me!r} a place in LAYERS")
        elif RANK[other] > RANK[me] or (RANK[other] == RANK[me] and RANK[me] > 0):
            found.append(f"{place}: {other} is not to the left of {me}")
        elif frozenset((me, other)) in NOT_IDENTITY:
            found.append(f"{place}: {me} and {other} stay apart")
    return found


@pytest.mark.parametrize("package", sorted({p.relative_to(ROOT / "ttt").parts[0] for p in FILES}))
def test_imports_point_to_the_left(package):
    files = [p for p in FILES if p.relative_to(ROOT / "ttt").parts[0] == package]
    assert not (found := [w for p in files for w in wrong(p)]), "\n".join(found)


def test_the_check_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_layers.ROOT", tmp_path)
    (tmp_path / "ttt" / "data").mkdir(parents=True)
    bad = tmp_path / "ttt" / "data" / "x.py"
    bad.write_text(
        "import transformers\nfrom ttt.types import Kind\nfrom ttt.model import lm\ndef f():\n    from ttt.cli import main\n"
    )
    assert [w.split(": ")[0] for w in wrong(bad)] == [
        "ttt/data/x.py:1 imports transformers", "ttt/data/x.py:3 imports ttt.model", "ttt/data/x.py:5 imports ttt.cli",
    ]  # fmt: skip
