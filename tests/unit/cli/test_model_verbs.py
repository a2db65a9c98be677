"""``ttt model init`` and ``ttt model text``: the model before training, and the text model inside one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from local_backbones import NUM_CODES, make_backbone

from tests.conftest import tiny_tokenizer
from ttt.cli.main import main
from ttt.config.schema import ModelSection
from ttt.model.causal_lm import load_lm, start_lm
from ttt.model.lm import SpeechTextLM
from ttt.registry.families import INITIALIZER


@pytest.fixture
def recipe(tmp_path) -> tuple[Path, Path]:
    base = make_backbone(tmp_path / "base", "qwen3")
    settings = [f"model.path={base}", f"data.tokenizer={tmp_path / 'tokenizer'}", f"data.num_codes={NUM_CODES}"]
    assert main(["tokenizer", *settings, "data.form=text_then_speech_tags"]) == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(
        json.dumps(
            {"model": {"path": str(base), "freeze": "text_rows"}, "data": {"tokenizer": str(tmp_path / "tokenizer")}}
        )
    )
    return base, path


def test_init_writes_what_training_starts_with(recipe, tmp_path, capsys):
    base, path = recipe
    assert main(["model", "init", str(path), str(tmp_path / "out"), "run.seed=3"]) == 0
    made = load_lm(tmp_path / "out")
    init = INITIALIZER.build("normal", "model.init")
    start = start_lm(ModelSection(path=str(base), init=init, freeze="text_rows"), made.tokenizer, 3)
    assert torch.equal(made.hf.get_input_embeddings().weight, start.hf.get_input_embeddings().weight)
    assert type(made.hf.get_input_embeddings()) is torch.nn.Embedding, "a plain folder"
    assert main(["model", "init", str(path), str(tmp_path / "out")]) == 2
    assert "is there already; name another folder, or give --overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["model", "show", str(base), "run.seed=3"])
    assert stop.value.code == 2 and "unrecognized arguments: run.seed=3" in capsys.readouterr().err


def test_text_gives_back_the_backbone_that_speech_was_added_to(recipe, tmp_path):
    base, path = recipe
    assert main(["model", "init", str(path), str(tmp_path / "whole")]) == 0
    assert main(["model", "text", str(tmp_path / "whole"), str(tmp_path / "text")]) == 0
    before, after = (json.loads((f / "tokenizer.json").read_text()) for f in (base, tmp_path / "text"))
    assert after["model"] == before["model"] and after["added_tokens"] == before["added_tokens"]
    from ttt.model.backbone import load_hf
    from ttt.model.folder import own_tokens

    one, other = load_hf(base), load_hf(tmp_path / "text")
    tokens = own_tokens(base, one.get_input_embeddings().num_embeddings)
    rows = other.get_input_embeddings().num_embeddings
    assert rows == tokens == own_tokens(tmp_path / "text", rows)
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a[:tokens] if "embed" in name else a, b), name


def test_text_cuts_the_interleaved_form_too(tmp_path):
    from tests.conftest import tiny_hf
    from ttt.model.frozen import first_added

    SpeechTextLM(tiny_hf(), tiny_tokenizer()).save(tmp_path / "whole")
    assert main(["model", "text", str(tmp_path / "whole"), str(tmp_path / "text")]) == 0
    names = {t["content"] for t in json.loads((tmp_path / "text/tokenizer.json").read_text())["added_tokens"]}
    assert names == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    config = json.loads((tmp_path / "text/config.json").read_text())
    assert config["vocab_size"] == first_added(tiny_tokenizer())
