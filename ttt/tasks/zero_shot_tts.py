"""Speech from text in the voice of a recording: VALL-E's task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ttt.errors import DataError
from ttt.registry.families import TASK
from ttt.tasks.base import codes_of, final_speech, text_of, user_speech
from ttt.tasks.continuation import Continuation
from ttt.types import Example, Span, Turn


@TASK.register("zero_shot_tts")
@dataclass(frozen=True)
class ZeroShotTts(Continuation):
    """Text and some speech of a speaker -> speech of the text in that voice (VALL-E, arXiv 2301.02111).

    The text is that of the prompt's speech, then that of the answer.  ``voice``: what the prompt is.  ``beginning``: the
    first part of the recording itself, as ``cut`` says (VALL-E-continual, and VALL-E's training).  ``other``: all of another
    recording of the speaker, which the item names in ``voice``, with its words in ``voice_text``.

    ``text``: the field of the item that holds what ``utterance`` says: words, or phonemes.
    """

    reads_text: ClassVar[bool] = True
    reads_voice: ClassVar[bool] = True

    voice: Literal["beginning", "other"] = "beginning"  # beginning | other
    text: str = "text_out"

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the text, then the prompt's codes.  Assistant: the answer's."""
        said = text_of({**item, self.text: str(item.get(self.text) or "")}, self.text).strip()
        if self.voice == "other":
            if not item.get("voice"):
                raise DataError(
                    f"item {item.get('id')!r}: names no other recording of its speaker ('voice'); add one, leave the item out, "
                    "or say voice: beginning"
                )
            heard, answer = codes_of(item, "voice", codes), codes_of(item, self.utterance, codes)
            words, reference = f"{text_of(item, 'voice_text').strip()} {said}", said
        else:
            user, assistant = super().build(item, codes).turns
            assert user.spans[0].codes is not None and assistant.spans[0].codes is not None
            heard, answer = user.spans[0].codes, assistant.spans[0].codes
            words, reference = said, None
        asked = Turn("user", (Span("text", words), user_speech(heard)))
        meta = {
            "split": item.get("split", ""), "kind": item.get("kind", ""), "utterance": item.get(self.utterance),
            "speech_ref": reference,
        }  # fmt: skip
        return Example(str(item["id"]), (asked, Turn("assistant", (final_speech(answer),))), self.label, meta)
