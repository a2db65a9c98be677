"""`ttt data show`: what stands on the page, and what is called odd."""

import numpy as np
import pytest

from tests.conftest import SENTENCES, audio, chat, text, tiny_tokenizer
from ttt.data.encode import encode_example
from ttt.data.reports.show import faults, page, stretches
from ttt.text.tokenizer import train_bpe
from ttt.types import Example, Span, Turn

PLAIN, TAGGED = "text_then_speech", "text_then_speech_tags"


@pytest.fixture(scope="module", params=[PLAIN, TAGGED])
def tokenizer(request):
    return train_bpe(SENTENCES, 300, 16, form=request.param).made_by("toy", 50.0)


def speech(n):
    return Span("audio", codes=(np.arange(n, dtype=np.int32) % 16)[:, None], style="last")


def of(tokenizer, *spans, user="Hi there"):
    return encode_example(chat("u1", [text(user)], list(spans)), tokenizer)


def test_page(tokenizer):
    stream = of(tokenizer, text("Yo\nman"), speech(50))
    lines = page(stream, tokenizer).splitlines()
    n, learned = len(stream), int(stream.target.sum())
    assert lines[0] == f"u1 (task chat): {n} tokens, {learned} learned; 50 codes = 1.00 s"
    assert lines[1].strip().startswith("masked") and "<|im_start|>user\\nHi there<|im_end|>" in lines[1]
    shown = "[50 codes: 0 1 2 3 4 5 6 7 ... 14 15 0 1]"
    if tokenizer.vocab.form == TAGGED:
        assert lines[1].endswith("</think>\\n\\n")
        assert lines[2].endswith(f"<text>Yo\\nman</text><speech>{shown}</speech><|im_end|>")
    else:
        assert lines[1].endswith("assistant\\n") and lines[2].endswith(f"</think>\\n\\nYo\\nman{shown}<|im_end|>")
    border = n - learned
    at = lines.index(f"  border at {border}: from here tokens are learned")
    before, after = lines[at + 3].split(), lines[at + 4].split()
    assert before[:5] == [str(border - 1), "id", str(stream.ids[border - 1]), "label", "-100"]
    assert after[:5] == [str(border), "id", str(stream.ids[border]), "label", str(stream.ids[border])]
    assert not any("odd" in line for line in lines) and "\x1b" not in "\n".join(lines)


def test_color_only_when_asked(tokenizer):
    stream = of(tokenizer, text("Yo"), speech(2))
    painted = page(stream, tokenizer, color=True)
    assert "\x1b[32m" in painted and painted.replace("\x1b[32m", "").replace("\x1b[2m", "").replace(
        "\x1b[0m", ""
    ) == page(stream, tokenizer)


def test_seconds_of_published_speech(tokenizer):
    assert "438 codes = 8.76 s" in page(of(tokenizer, text("Yo"), speech(438)), tokenizer)


def test_stretches_cover_the_stream(tokenizer):
    stream = of(tokenizer, text("Yo"), speech(2))
    parts = stretches(stream)
    assert [p.learned for p in parts] == [False, True] and parts[0].start == 0 and parts[-1].stop == len(stream)
    for p in parts:
        assert (stream.target[p.start : p.stop] == p.learned).all()


def test_odd_answers_are_named(tokenizer):
    assert faults(of(tokenizer, text("Yo"), speech(2)), tokenizer) == []
    assert faults(of(tokenizer, speech(2), text("Yo")), tokenizer) == [
        "speech comes before the answer's text", "text comes behind speech",
    ]  # fmt: skip
    assert faults(of(tokenizer, speech(2)), tokenizer) == ["speech comes before the answer's text"]
    assert "an audio span is empty" in faults(of(tokenizer, text("Yo"), speech(0)), tokenizer)
    asked = encode_example(Example("q", (Turn("user", (text("Hi"),)),)), tokenizer)
    assert "nothing is learned" in faults(asked, tokenizer)
    cut = of(tokenizer, text("Yo"), speech(4)).truncate(0, 2)
    assert faults(cut, tokenizer) == ["does not end with <|im_end|>: the model never learns to stop"]


def test_interleaved_chats_and_documents():
    tokenizer = tiny_tokenizer()
    chats = encode_example(chat("c", [audio([1, 2], "user")], [text("yes"), audio([3], "last")]), tokenizer)
    assert "[2 codes: 1 2]" in page(chats, tokenizer) and "odd" not in page(chats, tokenizer)
    document = encode_example(Example("d", (Turn("document", (text("once"), audio([1]))),)), tokenizer)
    assert page(document, tokenizer).splitlines()[1].startswith("  learned") and "border" not in page(
        document, tokenizer
    )
