"""The published rows -> examples -> a store -> batches -> loss: text-then-speech takes the way of every other example."""

import json

import numpy as np
import pytest
import torch

from tests.conftest import SENTENCES
from ttt.data.batches.loader import Loader
from ttt.data.convert.core import Report, results, write_records
from ttt.data.read.examples import read_examples
from ttt.data.sources.build_store import Settings, pack
from ttt.data.sources.mix import Source, open_streams
from ttt.errors import ConfigError
from ttt.registry.families import CONVERTER, OBJECTIVE, TASK
from ttt.rng import generator
from ttt.text.tokenizer import train_bpe

PLAIN, TAGGED = "text_then_speech", "text_then_speech_tags"


@pytest.fixture(scope="module", params=[PLAIN, TAGGED])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slam")
    rng = np.random.default_rng(0)
    rows = [
        {"question": SENTENCES[i % 3], "answer": SENTENCES[-1 - i % 2],
         "answer_cosyvoice_speech_token": rng.integers(0, 4096, int(rng.integers(1, 30))).tolist()}
        for i in range(40)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    converter = CONVERTER.build({"name": "slam_omni"}, "--from")
    write_records(results(converter, folder / "rows.jsonl", Report(), skip_bad=False), folder / "all.jsonl")
    tokenizer = train_bpe(SENTENCES, 300, 4096, form=request.param).made_by("cosyvoice_v1", 50.0)
    tokenizer.save(folder / "tok")
    pack([Source(folder / "all.jsonl", name="all")], folder / "store", Settings(str(folder / "tok")))
    return folder, tokenizer, rows


def batch(world):
    folder, tokenizer, _ = world
    streams = open_streams(folder / "store", tokenizer)
    return Loader(streams, tokenizer.vocab, row_tokens=256, batch_tokens=512, seed=0).micro_batch(0, 0)


def test_every_learned_token_is_predicted_from_the_one_before(world):
    """Text, codes and the end are targets of one next-token term; the prompt is not."""
    made = batch(world)
    vocab = world[1].vocab
    term = OBJECTIVE.build({"name": "ar"}, "objective").plan(made, generator(0, "noise")).terms["ar"]
    assert torch.equal(term.target, made.ids.flatten()[term.source + 1])
    assert len(term.target) == int(made.target.sum())
    codes = (term.target >= vocab.code_start).sum()
    assert codes == (made.ids >= vocab.code_start).sum(), "all speech is learned"
    assert (term.target == vocab.im_end_id).sum() == made.n_docs, "one end an answer; the question's is not learned"
    opens = [vocab.text_open_id, vocab.soa_id] if vocab.form == TAGGED else []
    assert all((term.target == token).sum() == made.n_docs for token in opens)


def test_codes_of_the_rows_arrive(world):
    folder, tokenizer, rows = world
    for stream, row in zip(open_streams(folder / "store", tokenizer), rows, strict=True):
        assert tokenizer.vocab.codes(stream.ids)[:, 0].tolist() == row["answer_cosyvoice_speech_token"]


def test_diffusion_needs_a_mask_token(world):
    objective = OBJECTIVE.build({"name": "ttt"}, "objective")
    with pytest.raises(ConfigError, match="data.tokenizer: this vocabulary has no mask token"):
        objective.plan(batch(world), generator(0, "noise"))


def test_prompts_of_the_task(world):
    task = TASK.build({"name": "text_then_speech"}, "tasks[0]")
    for example in read_examples(world[0] / "all.jsonl"):
        assert example.task == task.label and task.prompt(example).turns == example.turns[:-1]
