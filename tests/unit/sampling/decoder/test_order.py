"""Text, then speech: the order holds whatever the network says, and neither batch, cache nor streaming changes a token."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch

from ttt.data.encode import encode_example
from ttt.errors import ConfigError
from ttt.masks.library import Causal
from ttt.model.lm import SpeechTextLM
from ttt.registry.families import SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.decoder.spans import spans_of
from ttt.sampling.decoder.stream import stream
from ttt.sampling.samplers.length import UntilEoa
from ttt.sampling.trace.record import Tracer
from ttt.text.forms import DEFAULT_FORM
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.types import Example, Prompt, Span, Turn

PLAIN, TAGGED = "text_then_speech", "text_then_speech_tags"

CODES = 24
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "sang", "one", "two", "three", "songs"]


@cache
def tokenizer(form: str, codebooks: int = 1) -> TextTokenizer:
    return train_bpe([" ".join(WORDS), "user assistant"] * 3, 290, CODES, num_codebooks=codebooks, form=form)


@cache
def talker(form: str, seed: int, codebooks: int = 1) -> SpeechTextLM:
    """A random network that likes to change what it does."""
    from transformers import AutoConfig, AutoModelForCausalLM

    v = tokenizer(form, codebooks).vocab
    config = AutoConfig.for_model(
        "qwen3", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=v.size + 5, tie_word_embeddings=False, initializer_range=0.2, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config).eval()
    likes = {i: 2.5 for i in (v.text_close_id, v.soa_id, v.eoa_id) if i >= 0} | {v.im_end_id: 2.0}

    class Biased(SpeechTextLM):
        def head(self, hidden, ids=None):
            logits = super().head(hidden)
            for token, b in likes.items():
                logits[..., token] += b
            return logits if ids is None else logits[..., ids]

    return Biased(hf, tokenizer(form, codebooks))


def prompts(form: str, n: int = 4) -> list[Prompt]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        said = " ".join(rng.choice(WORDS, size=1 + i))
        s = encode_example(Example(f"q{i}", (Turn("user", (Span("text", said),)),)), tokenizer(form), open_answer=True)
        made.append(Prompt(s.uid, s.ids.tolist()))
    return made


def decoder(form: str, seed: int = 0, sampler=None, **settings) -> Decoder:
    made = SAMPLER.build(sampler or {"name": "ar"}, "eval.sampler")
    return Decoder(talker(form, seed), Causal(), made, DecodeSettings(**{"max_tokens": 60, **settings}))


def letters(form: str, ids) -> str:
    """One letter a token: t words, c codes, and the tags by name."""
    v = tokenizer(form).vocab
    names = {i: tag for tag, i in v.modality_tokens.items()} | {v.im_end_id: "."}
    return "".join(names.get(i) or ("c" if v.code_start <= i < v.code_stop else "t") for i in ids)


ORDERS = {
    (TAGGED, "free"): r"<text>t*(</text>(<speech>c*(</speech>\.?)?|\.)?)?",
    (TAGGED, "always"): r"<text>t*(</text>(<speech>c*(</speech>\.?)?)?)?",
    (TAGGED, "never"): r"<text>t*(</text>\.?)?",
    (PLAIN, "free"): r"t*c*\.?", (PLAIN, "always"): r"t*(c+\.?)?", (PLAIN, "never"): r"t*\.?",
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form, speak", ORDERS)
@pytest.mark.parametrize("temperature", (0.0, 1.2))
def test_the_order_holds_whatever_the_network_says(form, speak, seed, temperature):
    sampler = {"name": "ar", "temperature": temperature}
    made = decoder(form, seed, sampler, speak=speak, temperature=temperature).generate(prompts(form))
    for answer in made:
        assert re.fullmatch(ORDERS[form, speak], letters(form, answer.ids)), letters(form, answer.ids)
        assert (answer.stopped == "im_end") == letters(form, answer.ids).endswith(".")
        kinds = [s.kind for s in answer.spans]
        assert kinds in ([], ["text"], ["audio"], ["text", "audio"])
        v = tokenizer(form).vocab
        codes = sum(v.code_start <= i < v.code_stop for i in answer.ids)
        assert len(answer.codes) == codes and (not codes or 0 <= answer.codes.min() <= answer.codes.max() < CODES)


@pytest.mark.parametrize("form", (PLAIN, TAGGED))
def test_batch_cache_and_streaming_change_no_token(form):
    how = {"temperature": 0.9, "sampler": {"name": "ar", "temperature": 0.9}}
    reference = [decoder(form, 1, cache="none", **how).generate([p])[0].ids for p in prompts(form)]
    assert len({len(r) for r in reference}) > 1
    assert [g.ids for g in decoder(form, 1, **how).generate(prompts(form), batch_size=3)] == reference
    streamed: list[list[int]] = [[] for _ in reference]
    codes: list[int] = [0 for _ in reference]
    for event in stream(decoder(form, 1, **how), prompts(form), None):
        if event.kind == "block":
            codes[event.row] += len(event.codes)
        if event.kind == "end":
            streamed[event.row] = event.generation.ids
            assert len(event.generation.codes) == codes[event.row]
    assert streamed == reference
    tracer = Tracer()
    assert [g.ids for g in decoder(form, 1, **how).generate(prompts(form), tracer)] == reference
    for uid, record in tracer.records.items():
        assert record.ids == reference[int(uid[1:])]
        drawn = [(k, p) for k, p in zip(record.kind, record.confidence, strict=True) if k in "ta" and p is not None]
        assert drawn and all(0 < p <= 1 for _, p in drawn)


def test_tags_that_nothing_could_replace_cost_no_call():
    (answer,) = decoder(TAGGED, 0, speak="always").generate(prompts(TAGGED, 1))
    assert letters(TAGGED, answer.ids).endswith("</speech>.")
    assert answer.calls == {"ar": len(answer.ids) - 3, "diffusion": 0}


def test_a_spans_limit_forces_its_end():
    for form in (PLAIN, TAGGED):
        for answer in decoder(form, 2, speak="always", length=UntilEoa(limit=4)).generate(prompts(form)):
            assert len(answer.codes) <= 4


def test_without_strict_anything_may_be_written_and_speech_is_what_lies_behind_the_offset():
    for form in (PLAIN, TAGGED):
        v = tokenizer(form).vocab
        for answer in decoder(form, 1, {"name": "ar", "temperature": 1.5}, temperature=1.5, strict=False).generate(
            prompts(form)
        ):
            own = [i for i in answer.ids if v.code_start <= i < v.code_stop]
            assert answer.codes[:, 0].tolist() == [i - v.code_start for i in own]


def test_codes_are_split_by_id_and_not_by_spelling():
    for form in (PLAIN, TAGGED):
        t = tokenizer(form)
        v = t.vocab
        blank = t.encode(" ")  # decodes to white space alone
        tags = (v.text_open_id, v.text_close_id, v.soa_id) if form == TAGGED else ()
        ids = [*tags[:1], *t.encode("one"), *blank, *tags[1:], v.code_start, v.code_stop - 1]
        spans = spans_of([*ids, *((v.eoa_id,) if form == TAGGED else ()), v.im_end_id], t)
        assert [s.kind for s in spans] == ["text", "audio"] and spans[0].text.strip() == "one"
        assert spans[1].codes.tolist() == [[0], [CODES - 1]]


def test_settings_that_a_form_cannot_follow_are_refused():
    with pytest.raises(
        ConfigError, match=r"^eval\.sampler: a vocabulary of form 'text_then_speech_tags' has no mask token"
    ):
        decoder(TAGGED, sampler={"name": "blockwise"})
    with pytest.raises(ConfigError, match=r"^eval\.min_text_tokens_after_audio: no text follows"):
        decoder(PLAIN, min_text_tokens_after_audio=2)
    with pytest.raises(ConfigError, match="^speak: no 'sometimes'. Choices: free, always, never"):
        decoder(PLAIN, speak="sometimes")
    with pytest.raises(ConfigError, match=r"^eval\.speak: 'always' is for text-then-speech models, this vocabulary is"):
        Decoder(talker(DEFAULT_FORM, 0), Causal(), SAMPLER.build("ar", "s"), DecodeSettings(speak="always"))


@pytest.mark.parametrize("speak", ("free", "always"))
@pytest.mark.parametrize("form", (PLAIN, TAGGED))
def test_a_constraint_keeps_frames_of_several_codes_whole(form, speak):
    from ttt.registry.families import CONSTRAINT

    v, ar = tokenizer(form, 3).vocab, SAMPLER.build({"name": "ar", "temperature": 1.0}, "s")
    frame = CONSTRAINT.build("frame", "eval.constraint")
    settings = DecodeSettings(max_tokens=90, speak=speak, constraint=frame, temperature=1.0, length=UntilEoa(limit=20))
    frames = 0
    for seed in range(3):
        for answer in Decoder(talker(form, seed, 3), Causal(), ar, settings).generate(prompts(form)):
            ids = [i for i in answer.ids if v.code_start <= i < v.code_stop]
            frames += len(v.frames(np.array(ids)))  # refuses codes out of order, and an unfinished frame
            assert len(ids) <= 18 and len(answer.codes) == len(ids) // 3
    assert frames
