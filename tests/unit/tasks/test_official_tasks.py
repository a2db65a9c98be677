"""Tasks of records with their own answers: what the prompt is, what the references are, where documents are cut."""

from __future__ import annotations

import pytest

from tests.conftest import audio, text, tiny_tokenizer
from ttt.data.encode import encode_example
from ttt.data.read.examples import official_record, prompt_turns
from ttt.errors import DataError
from ttt.registry.families import TASK
from ttt.types import Example, Turn

USER = "<|begin_of_audio|><|audio_1|><|audio_2|><|end_of_audio|>"
ANSWER = "so it<|begin_of_audio|><|audio_3|><|end_of_audio_new|> is<|begin_of_quad|><|audio_4|><|end_of_audio_span_last|>"


def task(name: str, **fields):
    return TASK.build({"name": name, **fields}, "tasks[0]")


def record(*said: tuple[str, str]) -> Example:
    return official_record({"messages": [{"role": role, "content": content} for role, content in said]}, "r")


@pytest.mark.parametrize(
    ("answer", "written", "spoken"),
    [(ANSWER, "so it is", "so it is"), (" four\n", "four", None), (ANSWER[ANSWER.index("<|begin_of_quad") :], None, None)],
)
def test_the_last_answer_is_the_reference(answer, written, spoken):
    talk = record(("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", USER), ("assistant", answer))
    found = task("chat").with_reference(talk)
    assert (found.meta["text_ref"], found.meta["speech_ref"]) == (written, spoken)
    assert task("chat").prompt(found).turns == talk.turns[:-1], "earlier answers are part of the prompt"
    assert task("chat").with_reference(found) is found, "a reference that is there is kept"


def test_a_chat_that_ends_with_the_user_is_all_prompt():
    asked = record(("user", USER))
    assert task("chat").prompt(asked) is asked and "text_ref" not in task("chat").with_reference(asked).meta


@pytest.mark.parametrize(
    ("spans", "share", "kept", "rest"),
    [
        ([text("a b c d")], 0.5, ["a b"], " c d"),
        ([text("a b"), audio([1, 2]), text(" c d")], 0.7, ["a b", [1, 2]], " c d"),
        ([text("a b"), audio([1] * 8), text(" c")], 0.5, ["a b"], " c"),  # never inside speech
        ([audio([1] * 8), text("c d")], 0.5, [[1] * 8], "c d"),  # unless there is nothing before
        ([text("a b c d")], 0.01, ["a"], " b c d"),
    ],
)
def test_documents_are_cut_between_words_and_spans(spans, share, kept, rest):
    document = Example("d", (Turn("document", tuple(spans)),), "document")
    made = task("document", share=share)
    prompt = made.prompt(document)
    assert [s.text if s.codes is None else s.codes[:, 0].tolist() for s in prompt.turns[0].spans] == kept
    assert made.with_reference(document).meta["text_ref"] == rest.strip()
    begun = encode_example(prompt, tiny_tokenizer(), open_answer=True)
    assert begun.ids.tolist() == encode_example(document, tiny_tokenizer()).ids[: len(begun)].tolist()


def test_long_documents_give_short_prompts():
    document = Example("d", (Turn("document", (text("a " * 3000),)),), "document")
    assert len(task("document").prompt(document).turns[0].spans[0].text.split()) == 500
    with pytest.raises(DataError, match="task 'document' needs a document, got a chat"):
        task("document").prompt(record(("user", "a")))


def test_prompts_as_they_are_written():
    (turn,) = prompt_turns(f"caption this{USER}", "here")
    assert turn.role == "user" and [s.kind for s in turn.spans] == ["text", "audio"] and turn.spans[1].style == "user"
    whole = f"<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n{USER}<|im_end|>\n<|im_start|>assistant\n"
    system, user = prompt_turns(whole, "here")
    assert (system.role, system.spans[0].text, user.spans[0].codes[:, 0].tolist()) == ("system", "be kind", [1, 2])
    for broken, message in (
        ("<|audio_1|>", "here: '<|audio_1|>' outside a span"), ("<|im_start|>bot\nhi", "here: expected <|im_start|> and one of"),
        ("<|begin_of_audio|><|audio_1|>", "has no end token"),
    ):  # fmt: skip
        with pytest.raises(DataError) as error:
            prompt_turns(broken, "here")
        assert message in str(error.value)
