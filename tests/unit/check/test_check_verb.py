"""``ttt check`` on the command line."""

from __future__ import annotations

import pytest

from ttt.cli.main import main
from ttt.registry.families import MASK

BROKEN = '''
from dataclasses import dataclass

from ttt.interfaces import MaskRule
from ttt.registry.families import MASK


@MASK.register("forgets_documents")
@dataclass(frozen=True)
class Rule(MaskRule):
    """Causal over whole rows."""

    def allow(self, layout):
        return lambda b, h, q, k: (k <= q) & layout.visible[b, k]
'''


def test_a_good_plugin_and_its_fields(capsys):
    assert main(["check", "schedule", "polynomial", "power=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("noise 'polynomial' {'power': 3.0}\n") and "all 4 properties hold" in out
    assert [line.split()[:2] for line in out.splitlines()[2:-1]] == [
        ["ok", "shape"], ["ok", "ends"], ["ok", "monotone"], ["ok", "slope"]
    ]  # fmt: skip


def test_a_broken_plugin_is_drawn_and_exits_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(MASK, "_entries", {n: MASK._entries[n] for n in MASK.names()})  # forgotten after the test
    path = tmp_path / "mine.py"
    path.write_text(BROKEN)
    assert main(["check", "mask", "forgets_documents", "--plugins", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"{path}:" in out and "broken: documents" in out
    assert "counter-example: row 0: text position" in out and "another document" in out and "X" in out
    assert "not checked: the rule says nothing (looks_ahead is empty)" in out


def test_nested_fields(capsys):
    assert main(["check", "mask", "dual_stream", "clean.name=block_causal", "clean.block_length=3"]) == 0
    assert "'block_length': 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, pattern",
    [
        (["check", "maks", "causal"], "no plug-in family named 'maks'. Did you mean 'mask'?"),
        (["check", "judge", "toy"], "family 'judge' has no checks"),
        (["check", "mask", "casual"], "no attention mask named 'casual'. Did you mean 'causal'?"),
        (
            ["check", "noise", "polynomial", "pwoer=3"],
            "noise.pwoer: no such key in 'polynomial'. Did you mean 'power'?",
        ),
        (["check", "noise", "polynomial", "power=0"], "noise.power: must be > 0, got 0.0"),
        (["check", "codec", "mimi"], "codec.path: not set"),
        (["check", "codec", "precomputed"], "codec 'precomputed' cannot be checked"),
    ],
)
def test_mendable_errors(argv, pattern, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert pattern in err and err.count("\n") == 1
