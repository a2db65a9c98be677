"""Speech from text in the voice of a recording: VALL-E's task."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ttt.errors import ConfigError, DataError
from ttt.registry import NonNegativeFloat
from ttt.registry.families import TASK
from ttt.tasks.base import codes_of, final_speech, text_of, user_speech
from ttt.tasks.continuation import Continuation
from ttt.types import Example, Span, Turn


@TASK.register("zero_shot_tts")
@dataclass(frozen=True)
class ZeroShotTts(Continuation):
    """Text and some speech of a speaker -> speech of the text in that voice (VALL-E, arXiv 2301.02111).

    The text is that of the prompt's speech, then that of the answer.  ``voice``: what the prompt is.  ``beginning``: the
    first part of the recording itself, as ``cut`` says (VALL-E-continual, and VALL-E's training).  ``other``: another
    recording of the speaker, which the item names in ``voice``: all of it, with its words (``voice_text``); or with
    ``voice_s`` so many seconds from anywhere in it, without words (VALL-E's prefix mode 4).

    ``text``: the field of the item that holds what ``utterance`` says: words, or phonemes.
    """

    reads_text: ClassVar[bool] = True
    reads_voice: ClassVar[bool] = True

    voice: Literal["beginning", "other"] = "beginning"  # beginning | other
    voice_s: NonNegativeFloat = 0.0  # other: at most so many seconds of it; 0: all of it
    text: str = "text_out"

    @property
    def fixed_prompt(self) -> bool:
        """Is the prompt another recording than the answer?  Training must not cut them anew then."""
        return self.voice == "other"

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
            words, reference = said, said
            if self.voice_s:
                heard = self._stretch(str(item["id"]), heard)
            else:
                words = f"{text_of(item, 'voice_text').strip()} {said}"
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
        if item.get("voice_vector") is not None:
            meta["voice_vector"] = item["voice_vector"]
        return Example(str(item["id"]), (asked, Turn("assistant", (final_speech(answer),))), self.label, meta)

    def _stretch(self, uid: str, codes: np.ndarray) -> np.ndarray:
        """``voice_s`` seconds of codes [F, Q]; where they begin is drawn from the item's id."""
        if not self.cut.frame_rate_hz:
            raise ConfigError(
                f"task {self.label!r}: voice_s needs the frames of a second, and the tokenizer does not say which codec made "
                "the codes; make it with codec= (or data.codes_of, data.codes_hz)"
            )
        length = min(len(codes), max(1, round(self.voice_s * self.cut.frame_rate_hz)))
        start = zlib.crc32(uid.encode()) % (len(codes) - length + 1)
        return codes[start : start + length]
