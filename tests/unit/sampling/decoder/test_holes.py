"""Text in-filling: what is given stays, every hole is filled with so many tokens, whoever shares the batch."""

import json
import re

import pytest

from tests.conftest import chat, text, tiny_model, tiny_tokenizer
from ttt.data.read.holes import filled, prompt_with_holes
from ttt.data.read.prompts import iter_prompts, prompt_of
from ttt.errors import ConfigError, DataError
from ttt.eval.generate import generate
from ttt.masks.library import Full
from ttt.registry.families import SAMPLER, TASK
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.types import Example, Turn

T = tiny_tokenizer()
V = T.vocab
BLOCKS = {"block_length": 4, "gen_length": 12}
SAMPLERS = {
    "blockwise": {**BLOCKS, "diffusion_steps": 6}, "threshold": BLOCKS, "first_hitting": BLOCKS,
    "fixed_length": {"gen_length": 12}, "semi_ar_padding": {"gen_length": 12, "initial_length": 4},
    "semi_ar_origin": {"gen_length": 12, "initial_length": 4},
}  # fmt: skip


def decoder(name="fixed_length", bias=None, max_tokens=64, **fields):
    sampler = SAMPLER.build({"name": name, "canvas": "answer", **SAMPLERS[name], **fields}, "sampler")
    return Decoder(tiny_model(bias=bias), Full(), sampler, DecodeSettings(max_tokens=max_tokens))


def example(answer, uid="a"):
    return chat(uid, [text("what is the capital")], [text(answer)])


def prompts(*examples):
    return [prompt_with_holes(e, Example(e.uid, e.turns[:-1], e.task), T) for e in examples]


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_given_stays_and_holes_are_filled_alone_and_in_company(name):
    """Ends are likely here, and still no hole holds one; rows have other holes and other lengths."""
    examples = [example("a cat [MASK:3] on [MASK:2]", "a"), example("[MASK:5] the mat", "b"), example("one [MASK:3] dog", "c")]
    given = prompts(*examples)
    bias = {V.im_end_id: 6.0, V.pad_id: 6.0}
    together = decoder(name, bias).generate(given)
    for prompt, made in zip(given, together, strict=True):
        assert len(made.ids) == len(prompt.known) and made.stopped == "im_end"
        assert all(k in (i, V.mask_id) for k, i in zip(prompt.known, made.ids, strict=True))
        assert V.mask_id not in made.ids and list(made.ids).count(V.im_end_id) == 1
        (alone,) = decoder(name, bias).generate([prompt])
        assert alone.ids == made.ids


@pytest.mark.parametrize("name", ["fixed_length", "semi_ar_padding", "blockwise"])
def test_a_hole_sees_what_follows_it(name):
    """The first candidate of a hole depends on the text behind it: with other text other tokens are likely."""
    found = set()
    for behind in ("the mat", "nine ten", "fox jumps over", "france", "what you hear", "read this aloud"):
        prompt, = prompts(example(f"[MASK:3] {behind}"))
        greedy = {"remask": "low_confidence", "temperature": 0.0}
        (made,) = decoder(name, **greedy).generate([prompt])
        found.add(made.ids[:3])
    assert len(found) > 1


def test_documents_go_on_from_their_first_hole_and_records_have_the_fillings(tmp_path):
    path = tmp_path / "holes.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in (
        {"prompt": "a cat[MASK:2] on the mat", "id": "x"}, {"prompt": "one two", "id": "y"},
    )))  # fmt: skip
    examples = [e for _, e in iter_prompts(path, ["document"])]
    task = TASK.build("document", "task")
    x, y = generate(decoder(), examples, {"document": task}, 2)
    assert x["stopped"] == "filled" and x["text"] == x["holes"][0] + " on the mat" and x["calls"]["diffusion"]
    assert "holes" not in y
    path.write_text(json.dumps({"prompt": "what", "response": "a[MASK:1]b[MASK:2]", "id": "z"}))
    (z,) = (e for _, e in iter_prompts(path, ["chat"]))
    (made,) = generate(decoder(), [z], {"chat": TASK.build("chat", "task")}, 2)
    assert len(made["holes"]) == 2 and made["text"] == f"a{made['holes'][0]}b{made['holes'][1]}"


def test_fillings_and_prompts_without_holes():
    (prompt,) = prompts(example("a[MASK:1][MASK:2]b[MASK:1]"))
    ids = list(prompt.known)
    open_ = [n for n, i in enumerate(ids) if i == V.mask_id]
    for n in open_:
        ids[n] = T.encode("c")[0]
    assert len(open_) == 4 and filled(prompt, ids, T) == ["ccc", "c"]
    plain = example("a cat")
    asked = Example("a", plain.turns[:-1], "chat")
    assert prompt_with_holes(plain, asked, T) == prompt_of(asked, T)


def test_what_cannot_be_filled_is_refused():
    with pytest.raises(DataError, match=r"\[MASK:0\]"):
        prompts(example("a [MASK:0]"))
    for wrong in ("[MASK:-1]", "[MASK:x]", "[MASK:]", "[MASK:1234567]"):
        with pytest.raises(DataError, match=f"{re.escape(wrong)} is no hole; write"):
            prompts(example(f"a [MASK:2] b {wrong} c"))
    document = Example("d", (Turn("document", (text("[MASK:2] cat"),)),), "document")
    with pytest.raises(DataError, match="begins with a hole"):
        prompt_with_holes(document, document, T)
    with pytest.raises(DataError, match="<|im_end|>".replace("|", r"\|")):
        prompts(example("a [MASK:1] <|im_end|>"))
    given = prompts(example("a [MASK:3]"))
    with pytest.raises(ConfigError, match="eval.max_tokens"):
        decoder(max_tokens=3).generate(given)
    with pytest.raises(ConfigError, match="canvas: answer"):
        decoder(canvas="span").generate(given)
    with pytest.raises(ConfigError, match="without official"):
        d = decoder(official=True)
        d.generate(given)
