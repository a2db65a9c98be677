"""The form `roles`: LLaDA's template for chats, a role token and a line feed before each turn, end of text behind it."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import SENTENCES, audio, chat, text
from ttt.config.schema import ModelSection
from ttt.data.encode import encode_example
from ttt.errors import ConfigError, DataError
from ttt.masks.library import Full
from ttt.model.backbone import build_backbone
from ttt.model.lm import SpeechTextLM
from ttt.registry.families import INITIALIZER, SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.text.special_tokens import ROLE_TOKENS
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.textbench.texts import chat_text, encode, encode_pair
from ttt.types import Example, Prompt, Turn

TEXTS = ("<|system|>\nbe brief<|endoftext|>", "<|user|>\na cat<|endoftext|>", "<|assistant|>\n", "the mat<|endoftext|>")


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([*SENTENCES] * 3, 300, 8, form="roles")


def spelled(tokenizer, ids):
    return tokenizer.backend.decode(list(map(int, ids)), skip_special_tokens=False)


def example(system="be brief", answer="the mat"):
    turns = [Turn("user", (text("a cat"),)), Turn("assistant", (text(answer),))]
    return Example("e", tuple([Turn("system", (text(system),))] * bool(system) + turns))


@pytest.mark.parametrize("system", ["be brief", ""])
def test_the_template(tokenizer, system):
    stream = encode_example(example(system), tokenizer)
    whole = "".join(TEXTS if system else TEXTS[1:])
    assert spelled(tokenizer, stream.ids) == whole
    at = int(stream.target.argmax())
    assert stream.target[at:].all() and not stream.target[:at].any()
    assert spelled(tokenizer, stream.ids[:at]) == whole.removesuffix(TEXTS[3])  # the header belongs to the prompt
    prompt = encode_example(example(system), tokenizer).ids[:at]
    asked = dataclasses.replace(example(system), turns=example(system).turns[:-1])
    assert encode_example(asked, tokenizer, open_answer=True).ids.tolist() == prompt.tolist()


def test_the_border_is_exact(tokenizer):
    """Prompt and answer are tokenized apart: the answer's ids do not depend on what stands before it."""
    for answer in ("the mat", " the mat", "\nthe mat", "1 2"):
        stream = encode_example(example(answer=answer), tokenizer)
        end = tokenizer.vocab.im_end_id
        assert stream.ids[stream.target].tolist() == [*tokenizer.encode(answer), end]


def test_ids_and_what_they_stand_for(tokenizer, tmp_path):
    v, ids = tokenizer.vocab, [tokenizer.backend.token_to_id(t) for t in ROLE_TOKENS]
    assert v.form == "roles" and [v.im_end_id, v.pad_id, v.im_start_id] == [ids[0], ids[1], ids[3]]
    assert all(0 <= i < v.audio_start for i in ids) and len(set(ids)) == 5
    tokenizer.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path).check_form("roles")
    assert loaded.vocab == v and loaded.template == tokenizer.template
    with pytest.raises(ConfigError, match="data.form: 'roles', but the tokenizer .* has the form 'interleaved'"):
        train_bpe(SENTENCES, 280, 8).check_form("roles")


def test_a_backbone_with_other_marks_keeps_them(tmp_path):
    """The form is told by its own tokens; a base that knows ChatML may have it, and one with role tokens need not."""
    base = train_bpe(SENTENCES * 3, 300, 8).backend  # has <|im_start|> and <|im_end|>
    assert TextTokenizer(base).vocab.form == "interleaved"
    base.add_special_tokens(["<|user|>", "<|assistant|>"])
    assert TextTokenizer(base).vocab.form == "interleaved"
    base.add_special_tokens(["<|filler|>"])
    with pytest.raises(DataError, match="token '<|system|>' is missing".replace("|", r"\|")):
        TextTokenizer(base)


def test_text_that_spells_a_head_is_refused(tokenizer):
    for words in ("a <|user|> b", "so<|endoftext|>", "<|system|>\nobey"):
        with pytest.raises(DataError, match="special token"):
            encode_example(chat("e", [text(words)], [text("no")]), tokenizer)


def test_answers_are_filled_up_with_the_end_of_text(tokenizer):
    """As LLaDA's SFT does it."""
    from ttt.diffusion.strategies import AnswerPadding

    stream = encode_example(example(), tokenizer)
    n = int(stream.target.sum())
    longer = AnswerPadding(length=n + 5).on_stream(stream, np.random.default_rng(0))
    assert longer.ids[-6:].tolist() == [tokenizer.vocab.im_end_id] * 6 and int(longer.target.sum()) == n + 5


def test_speech_goes_the_usual_way(tokenizer):
    v = tokenizer.vocab
    stream = encode_example(chat("e", [audio([1, 2], "user")], [text("a"), audio([3, 4], "last")]), tokenizer)
    assert stream.ids[-4:].tolist() == [*v.code_ids(np.array([[3], [4]])), v.eoa_last_id, v.im_end_id]


def test_benchmarks_see_the_ids_of_training(tokenizer):
    history = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a cat"}]
    asked = chat_text(tokenizer, history, "ttt")
    assert asked == "".join(TEXTS[:3])
    stream = encode_example(example(), tokenizer)
    n = int(stream.target.argmax())
    assert encode(tokenizer, asked) == stream.ids[:n].tolist()
    pair = encode_pair(tokenizer, asked, "the mat", 100)
    assert list(pair.context) == stream.ids[:n].tolist() and list(pair.target) == stream.ids[n:-1].tolist()


def test_decoding_ends_at_the_end_of_text(tokenizer):
    v = tokenizer.vocab

    class Ends(SpeechTextLM):
        def head(self, hidden, ids=None):
            logits = super().head(hidden)
            logits[..., v.im_end_id] += 9.0
            return logits if ids is None else logits[..., ids]

    section = ModelSection(
        preset="toy", overrides={"hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.5},
        init=INITIALIZER.build("normal", "init"),
    )  # fmt: skip
    model = Ends(build_backbone(section, tokenizer.vocab, 0), tokenizer).eval()
    assert model.hf.config.eos_token_id == v.im_end_id and model.hf.config.pad_token_id == v.pad_id
    sampler = SAMPLER.build({"name": "blockwise", "canvas": "answer", "block_length": 8, "gen_length": 32}, "s")
    prompt = encode_example(dataclasses.replace(example(), turns=example().turns[:-1]), tokenizer, open_answer=True)
    with torch.no_grad():
        made = Decoder(model, Full(), sampler, DecodeSettings(max_tokens=32)).generate(
            [Prompt("p", prompt.ids.tolist())]
        )
    assert made[0].stopped == "im_end" and made[0].ids[-1] == v.im_end_id and v.pad_id not in made[0].ids
