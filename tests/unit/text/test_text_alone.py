"""`data.num_codes: 0`: a model of text alone has no audio ids; its mask may be a token that its backbone has."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "model"))
from local_backbones import make_backbone

import ttt
from tests.conftest import audio, chat, text
from ttt.cli.main import main
from ttt.data.encode import encode_example
from ttt.errors import DataError
from ttt.text.special_tokens import ABSENT
from ttt.text.tokenizer import TextTokenizer, read_backend
from ttt.text.vocab import Vocabulary


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A text model whose tokenizer has a mask of its own, as LLaDA-8B's."""
    folder = make_backbone(tmp_path_factory.mktemp("alone") / "model", "qwen2")
    backend = read_backend(folder)
    backend.add_special_tokens(["<|mdm_mask|>"])
    backend.save(str(folder / "tokenizer.json"))
    return folder


def ids_of(folder: Path) -> int:
    return read_backend(folder).get_vocab_size(with_added_tokens=True)


@pytest.mark.parametrize(("form", "added"), [("interleaved", 1), ("roles", 5)])
def test_no_audio_ids(form, added, backbone, tmp_path):
    made = TextTokenizer.extended(backbone, 0, form=form)
    v = made.vocab
    assert v.size == ids_of(backbone) + added and v.num_codes == 0 and v.code_space.codebooks == ()
    assert {v.soa_id, v.soa_last_id, v.user_end_id, v.eoa_id, v.eoa_last_id} == {ABSENT}
    assert not any(v.is_audio(i) for i in range(v.size)) and made.has_form(form) and made.token(v.mask_id) == "<|mask_token|>"
    made.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.vocab == v and again.form is made.form and Vocabulary.load(tmp_path / "vocab.json").digest == v.digest
    said = chat("e", [text("why")], [text("so")], system="" if form == "roles" else "be kind")
    with_speech = TextTokenizer.extended(backbone, 32, form=form)
    spelled = [[t.token(i) for i in encode_example(said, t).ids] for t in (made, with_speech)]
    assert spelled[0] == spelled[1], "chats are written as with speech"
    with pytest.raises(DataError, match="holds speech, and this vocabulary is of text alone"):
        encode_example(chat("e", [text("why")], [audio([1], "last")]), made)
    with pytest.raises(DataError, match="form 'llada_tts' is for speech, num_codes 0 for text alone; use one of interl"):
        TextTokenizer.extended(backbone, 0, form="llada_tts")


def made_by_verb(backbone: Path, out: Path, *settings: str) -> int:
    return main(["tokenizer", f"data.tokenizer={out}", f"model.path={backbone}", *settings])


@pytest.mark.parametrize("by", ["spelling", "id"])
def test_a_mask_that_is_there_is_named(by, backbone, tmp_path, caplog):
    caplog.set_level("INFO")
    mask = ids_of(backbone) - 1
    named = "<|mdm_mask|>" if by == "spelling" else str(mask)
    assert made_by_verb(backbone, tmp_path, "data.num_codes=0", f"data.mask_token={named}") == 0
    made = TextTokenizer.load(tmp_path)
    assert (made.vocab.mask_id, made.vocab.size) == (mask, ids_of(backbone)), "nothing is added"
    assert f"text alone, mask {mask}" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.num_codes=0", "data.mask_token=<|nothing|>"], "data.mask_token: '<|nothing|>' is no token of"),
        (["data.num_codes=0", "data.mask_token=99999"], "data.mask_token: '99999' is no token of"),
        (["data.num_codes=0", "data.mask_token=5"], "an ordinary word of this vocabulary"),
        (["data.num_codes=8", "data.mask_token=<|mdm_mask|>"], "data.mask_token: form 'interleaved' has a mask of its own"),
    ],
)
def test_masks_that_cannot_be(settings, message, backbone, tmp_path, capsys):
    assert made_by_verb(backbone, tmp_path / "out", *settings) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out/tokenizer.json").exists()


@pytest.mark.parametrize("mask", ["", "<|mdm_mask|>"])
def test_from_tokenizer_to_answer(mask, backbone, tmp_path, capsys):
    """LLaDA's recipes for text train, answer and are asked by text benchmarks without one audio id."""
    (tmp_path / "chats.jsonl").write_text((json.dumps({"instruction": "why", "response": "a cat sat"}) + "\n") * 8)
    common = [
        "--config", "recipes/llada/conf/sft.yaml", f"run.dir={tmp_path / 'run'}", f"data.tokenizer={tmp_path / 'tok'}",
        f"model.path={backbone}", f"data.train={tmp_path / 'chats.jsonl'}", f"data.mask_token={mask}",
    ]  # fmt: skip
    assert main(["tokenizer", *common]) == 0
    sizes = ["data.row_tokens=64", "data.batch_tokens=64", "train.accumulate=1", "train.max_tokens=1", "train.autocast=none"]
    assert main(["train", *common, *sizes, "model.gradient_checkpointing=false"]) == 0, capsys.readouterr().err
    model = ttt.load(tmp_path / "run", "eval.sampler={name: fixed_length, gen_length: 8, canvas: answer}", "eval.max_tokens=8")
    assert model.lm.num_ids == max(ids_of(backbone) + (not mask), model.lm.hf.config.vocab_size)
    answer = model.generate("why", uid="q").generation
    assert answer.ids and model.tokenizer.vocab.mask_id not in answer.ids and not len(answer.codes)
    from ttt.textbench.opening import load_model

    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    scored, own = load_model(checkpoint / "model", model.config, "text")
    assert own is None and scored.tokenizer.vocab == model.tokenizer.vocab
