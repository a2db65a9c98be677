"""Drawing: what is on the page is what the rule says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import audio, chat, layout_of, pack, text
from ttt.cli.main import main
from ttt.data.encode import encode_example
from ttt.data.read.examples import write_examples
from ttt.errors import DataError
from ttt.masks.draw import borders, letters, mask_figure, mask_png, mask_text
from ttt.masks.library import BlockCausal, Hybrid
from ttt.masks.materialize import dense
from ttt.objective.dual_stream import DualStreamTtT
from ttt.registry.core import build_dataclass

IDS = [5, 6, 101, 102, 191, 7, 103, 191, 8]


def test_marked_cells_are_never_thinned_away():
    layout = layout_of(list(range(90)))
    allowed = dense(Hybrid(), layout)[0]
    drawn = mask_text(allowed, layout.kind[0], width=8, mark=[(41, 40), (40, 41)])
    assert drawn.count("X") == 1 and drawn.count("o") == 1
    assert len(drawn.splitlines()) == 1 + 10


def test_cells_and_strips_of_the_picture():
    layout = layout_of(IDS)
    figure = mask_figure(Hybrid(), layout, title="hybrid")
    body, top, left = figure.axes
    pixels = np.asarray(body.images[0].get_array())
    white = (pixels == 1.0).all(-1)
    assert np.array_equal(~white, dense(Hybrid(), layout)[0].numpy())
    assert np.asarray(top.images[0].get_array()).shape == (1, 9, 3)
    assert np.asarray(left.images[0].get_array()).shape == (9, 1, 3)
    assert [t.get_text() for t in top.get_xticklabels()] == ["text", "audio", "text", "audio", "text"]
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {"text", "audio", "blocked"}


def test_block_borders():
    layout = layout_of(IDS)
    assert borders(layout, 0) == ([2, 5, 6, 8], [])
    assert borders(layout, 2) == ([2, 4, 5, 6, 8], []), "three audio positions: a block of two and one of one"
    lines = mask_figure(BlockCausal(2), layout).axes[0].lines
    assert sorted({float(np.ravel(line.get_xdata())[0]) for line in lines} - {0.0}) == [1.5, 3.5, 4.5, 5.5, 7.5]


@pytest.fixture
def dual_plan(tokenizer):
    stream = encode_example(chat("a", [text("hi")], [text("yes"), audio([1, 2, 3, 4, 5], "last")]), tokenizer)
    fields = {"mask": {"name": "dual_stream", "clean": {"name": "block_causal", "block_length": 4}}}
    objective = build_dataclass(DualStreamTtT, fields, "objective")
    return stream, objective.plan(pack([[stream]]), torch.Generator().manual_seed(0))


def test_the_noisy_copy_is_drawn(dual_plan):
    stream, plan = dual_plan
    strip = "".join(letters(plan.layout.kind[0], plan.layout.stream[0]))
    assert strip.startswith("t") and strip.endswith("n" * 8) and strip.count("n") == 8, "two whole blocks of four"
    assert borders(plan.layout, 4)[1] == [len(stream)], "a heavy line before the copy"
    drawn = mask_text(dense(plan.mask, plan.layout)[0], plan.layout.kind[0], stream=plan.layout.stream[0], width=200)
    copies = [line for line in drawn.splitlines()[1:] if line.startswith("n ")]
    assert [line[-8:] for line in copies] == ["####...."] * 4 + ["....####"] * 4, "each block of the copy sees itself"
    legend = {t.get_text() for t in mask_figure(plan.mask, plan.layout).legends[0].get_texts()}
    assert "noisy copy" in legend


def test_png_is_whole_or_absent(tmp_path, dual_plan):
    _, plan = dual_plan
    mask_png(plan.mask, plan.layout, tmp_path / "m.png", title="dual")
    assert (tmp_path / "m.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(DataError, match="no folder"):
        mask_png(plan.mask, plan.layout, tmp_path / "none" / "m.png")


def test_show_draws_the_plan_of_the_objective(tmp_path, tokenizer, capsys):
    tokenizer.save(tmp_path / "tokenizer")
    example = chat("a", [text("hi")], [text("yes"), audio([1, 2, 3], "last")])
    write_examples(tmp_path / "x.jsonl", [example])
    argv = ["show", f"data.train={tmp_path / 'x.jsonl'}", f"data.tokenizer={tmp_path / 'tokenizer'}"]
    png = tmp_path / "mask.png"
    assert main([*argv, "objective=dual_stream", "--png", str(png)]) == 0
    out = capsys.readouterr().out
    assert png.stat().st_size > 5000 and "'name': 'dual_stream'" in out and "\nn " in out
    assert main([*argv, "objective=ar"]) == 0
    out = capsys.readouterr().out
    assert "'name': 'causal'" in out and "\nn " not in out
    assert main([*argv, "--png", str(tmp_path / "none" / "x.png")]) == 2 and "no folder" in capsys.readouterr().err
