"""Metrics: what one item adds up, and the score of the sum.  ``docs/metrics.md`` gives each with formula and unit.

A metric turns a scored item into sufficient statistics f64 [k]; the corpus score is a function of their *sum*, so that
every metric is a micro average and intervals come from resampling rows.  Keys of a scored item (made by
`ttt.eval.score`):

    uid task split            names
    text text_ref             what the model wrote, what it should have written
    answer_key distractors    the deciding words of the answer (or None), and words that must not be said
    judged_text speech_ref    what the judge heard, what should have been said (judged_text None: no judge listened)
    codes                     audio codes of the answer i32 [F, Q] (None: the answer is not spoken)
    audio_s ref_audio_s       seconds of speech made and of the reference's speech (None: the answer is not spoken)
    seconds first_block_s     decode time of the item, time until its first block of audio (or None)
    calls                     network calls by kind, {"ar": n, "diffusion": m}
    mel_distance_db speaker_similarity   of the speech made to the true one, and to the voice of the prompt (or None)
    forced                    statistics of the true answer under the model, by name: (sum, count) (``eval.forced``)
    normalize characters      the normaliser's functions: the text as its words, and as its characters, are compared

Besides the interface a metric has a ``unit`` (rate | ratio | s | 1/s | score; a rate is printed in per cent) and ``rests_on``
(judge, normalizer, speaker, reference, model: its ``model_id``), part of its name: ``judged_wer[ctc-1a2b3c4d,words]``;
``needs_reference`` False says that it compares the answer with nothing; ``best`` is the value to reach where neither
higher nor lower is better, ``counts_seconds`` says that the codec's frame rate is in it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ttt.interfaces import Metric
from ttt.registry import name_of
from ttt.registry.families import METRIC

UNITS = ("rate", "ratio", "s", "1/s", "score")


def metric_id(metric: Metric, judge_id: str, normalizer: str, speaker_id: str = "", reference: str = "codec") -> str:
    """Name of a metric with all that its number rests on: ``judged_wer[ctc-1a2b3c4d,words]``."""
    name = name_of(metric)
    parts = {"judge": judge_id, "normalizer": normalizer, "speaker": speaker_id, "reference": reference}
    resting = [getattr(metric, "model_id", r) if r == "model" else parts.get(r, r) for r in rests_on(metric)]
    return f"{name}[{','.join(resting)}]" if resting else name


def rests_on(metric: Metric) -> tuple[str, ...]:
    """What the metric's number depends on besides the answer; plug-ins that do not say: all of it."""
    default = ("judge", "normalizer") if metric.needs_audio else ("normalizer",)
    return getattr(metric, "rests_on", default)


def needs_codec(metric: Metric) -> bool:
    """Does the number rest on sound or on seconds of it?"""
    return metric.needs_audio or getattr(metric, "counts_seconds", False)


def ratio(numerator: float, denominator: float) -> float:
    """``numerator / denominator``, NaN when the denominator is 0."""
    return float(numerator / denominator) if denominator else float("nan")


# ------------------------------------------------------------------------------------------------- error rates


class _ErrorRate(Metric):
    """Micro error rate: (substitutions + deletions + insertions) / reference units.  Statistics: S, D, I, N."""

    unit: ClassVar[str] = "rate"
    spoken: ClassVar[bool] = False
    compared: ClassVar[str] = "normalize"  # which of the normaliser's functions prepares the texts

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [4]: S, D, I, N; None when there is no reference (or, for speech, when nobody listened)."""
        answer, reference = _answer_and_reference(scored, self.spoken)
        if answer is None or reference is None:
            return None
        normalize: Callable[[str], str] = scored.get(self.compared) or scored["normalize"]
        return np.array(self.edits(normalize(reference), normalize(answer)), dtype=np.float64)

    def total(self, statistics: np.ndarray) -> float:
        """(S + D + I) / N; may exceed 1."""
        return ratio(statistics[:3].sum(), statistics[3])

    @staticmethod
    @abstractmethod
    def edits(reference: str, answer: str) -> tuple[int, int, int, int]:
        """S, D, I and N of one pair."""


def word_edits(reference: str, answer: str) -> tuple[int, int, int, int]:
    """Substitutions, deletions, insertions and reference words, by jiwer.

    >>> word_edits("the sky is blue", "the sky was")
    (1, 1, 0, 4)
    """
    if not reference.split():
        return 0, 0, len(answer.split()), 0
    import jiwer

    out = jiwer.process_words(reference, answer)
    return out.substitutions, out.deletions, out.insertions, out.hits + out.substitutions + out.deletions


def character_edits(reference: str, answer: str) -> tuple[int, int, int, int]:
    """The same over characters; a blank counts as one."""
    if not reference:
        return 0, 0, len(answer), 0
    import jiwer

    out = jiwer.process_characters(reference, answer)
    return out.substitutions, out.deletions, out.insertions, out.hits + out.substitutions + out.deletions


@METRIC.register("wer")
@dataclass(frozen=True)
class Wer(_ErrorRate):
    """Word error rate of the text answer, micro: all edits over all reference words."""

    rests_on: ClassVar[tuple[str, ...]] = ("normalizer",)
    edits = staticmethod(word_edits)


@METRIC.register("cer")
@dataclass(frozen=True)
class Cer(_ErrorRate):
    """Character error rate of the text answer, micro; blanks between words count where the normaliser leaves them."""

    rests_on: ClassVar[tuple[str, ...]] = ("normalizer",)
    compared: ClassVar[str] = "characters"
    edits = staticmethod(character_edits)


@METRIC.register("judged_wer")
@dataclass(frozen=True)
class JudgedWer(_ErrorRate):
    """Word error rate between what the speech should say and what the judge hears; no speech: all words deleted."""

    rests_on: ClassVar[tuple[str, ...]] = ("judge", "normalizer")
    needs_audio: ClassVar[bool] = True
    spoken: ClassVar[bool] = True
    edits = staticmethod(word_edits)


@METRIC.register("judged_cer")
@dataclass(frozen=True)
class JudgedCer(_ErrorRate):
    """Character error rate of what the judge hears."""

    rests_on: ClassVar[tuple[str, ...]] = ("judge", "normalizer")
    needs_audio: ClassVar[bool] = True
    spoken: ClassVar[bool] = True
    compared: ClassVar[str] = "characters"
    edits = staticmethod(character_edits)


# ------------------------------------------------------------------------------------------------- right or wrong


def is_right(answer: str, reference: str, key: str, rivals: Sequence[str]) -> bool:
    """Does a normalised answer give the key, and no other answer beside it?

    Right iff the answer equals the reference, or it *ends* with the key as whole words and no rival (an answer that is
    not the key) occurs in it more often than in the reference.  So words of the question may be repeated ("three plus
    zero is three"), but neither two answers nor a key that is taken back later count.

    >>> colours = ["red", "blue"]
    >>> [is_right(s, "the sky is blue", "blue", colours) for s in ("blue", "it is blue", "the sky is blue")]
    [True, True, True]
    >>> [is_right(s, "the sky is blue", "blue", colours) for s in ("red or blue", "blue no red", "bluebird", "")]
    [False, False, False, False]
    """
    words, expected, deciding = answer.split(), reference.split(), key.split()
    if not words or not deciding:
        return False
    if words == expected:
        return True
    if words[-len(deciding) :] != deciding:
        return False
    others = [rival.split() for rival in rivals if rival and rival != key]
    return all(_count(r, words) <= max(_count(r, expected), _count(r, deciding)) for r in others)


def _count(part: Sequence[str], words: Sequence[str]) -> int:
    return sum(list(words[i : i + len(part)]) == list(part) for i in range(len(words) - len(part) + 1))


class _Share(Metric):
    """Share of items for which something holds.  Statistics: held, 1."""

    unit: ClassVar[str] = "rate"
    higher_is_better: ClassVar[bool] = True

    def total(self, statistics: np.ndarray) -> float:
        """Share in [0, 1]."""
        return ratio(statistics[0], statistics[1])


class _Accuracy(_Share):
    spoken: ClassVar[bool] = False

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]; None when the item has no ``answer_key``."""
        answer, reference = _answer_and_reference(scored, self.spoken)
        key = scored.get("answer_key")
        if answer is None or not key:
            return None
        normalize: Callable[[str], str] = scored["normalize"]
        rivals = [normalize(rival) for rival in scored.get("distractors") or ()]
        return np.array(
            [is_right(normalize(answer), normalize(reference or ""), normalize(key), rivals), 1], dtype=np.float64
        )


@METRIC.register("accuracy")
@dataclass(frozen=True)
class Accuracy(_Accuracy):
    """Share of text answers that end with the answer key and name no other answer (`is_right`)."""

    rests_on: ClassVar[tuple[str, ...]] = ("normalizer",)


@METRIC.register("spoken_accuracy")
@dataclass(frozen=True)
class SpokenAccuracy(_Accuracy):
    """The rule of ``accuracy`` on what the judge hears; no speech is wrong."""

    rests_on: ClassVar[tuple[str, ...]] = ("judge", "normalizer")
    needs_audio: ClassVar[bool] = True
    spoken: ClassVar[bool] = True


@METRIC.register("exact_match")
@dataclass(frozen=True)
class ExactMatch(_Share):
    """Share of text answers that equal the reference after normalisation."""

    rests_on: ClassVar[tuple[str, ...]] = ("normalizer",)

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: equal, 1."""
        if scored["text"] is None or scored["text_ref"] is None:
            return None
        normalize = scored["normalize"]
        return np.array([normalize(scored["text"]) == normalize(scored["text_ref"]), 1], dtype=np.float64)


@METRIC.register("contained")
@dataclass(frozen=True)
class Contained(_Share):
    """Share of text answers that hold the reference, as whole words in a row, after normalisation."""

    rests_on: ClassVar[tuple[str, ...]] = ("normalizer",)

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: held, 1; None when there is no reference."""
        if scored["text"] is None or not scored["text_ref"]:
            return None
        answer, reference = (f" {' '.join(scored['normalize'](scored[k]).split())} " for k in ("text", "text_ref"))
        return np.array([reference in answer, 1], dtype=np.float64)


@METRIC.register("empty_rate")
@dataclass(frozen=True)
class EmptyRate(_Share):
    """Share of answers that should be spoken and hold no audio code."""

    rests_on: ClassVar[tuple[str, ...]] = ()
    higher_is_better: ClassVar[bool] = False

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: silent, 1."""
        return None if scored["audio_s"] is None else np.array([scored["audio_s"] == 0, 1], dtype=np.float64)


# ------------------------------------------------------------------------------------------------- overlap


@METRIC.register("bleu")
@dataclass(frozen=True)
class Bleu(Metric):
    """Corpus BLEU of the text answers by sacrebleu (13a tokens, exponential smoothing, case kept), 0 to 100."""

    unit: ClassVar[str] = "score"
    rests_on: ClassVar[tuple[str, ...]] = ("13a",)
    higher_is_better: ClassVar[bool] = True

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [10]: matches and totals of 1- to 4-grams, lengths of answer and reference in tokens."""
        if scored["text"] is None or scored["text_ref"] is None:
            return None
        score = _bleu().sentence_score(scored["text"].strip(), [scored["text_ref"].strip()])
        return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len], dtype=np.float64)

    def total(self, statistics: np.ndarray) -> float:
        """BLEU of the summed counts."""
        s = [round(x) for x in statistics.tolist()]
        return float(_bleu().compute_bleu(s[:4], s[4:8], s[8], s[9], smooth_method="exp").score)


@lru_cache(maxsize=1)
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)  # silences the warning about short texts; the counts are the same


@METRIC.register("chrf")
@dataclass(frozen=True)
class Chrf(Metric):
    """Corpus chrF2 of the text answers as sacrebleu computes it (6 characters, no words, beta 2), 0 to 100."""

    unit: ClassVar[str] = "score"
    rests_on: ClassVar[tuple[str, ...]] = ("chrF2",)
    higher_is_better: ClassVar[bool] = True
    order: ClassVar[int] = 6
    beta: ClassVar[float] = 2.0

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [18]: n-grams of the answer, of the reference, and in both, for n = 1 .. 6."""
        if scored["text"] is None or scored["text_ref"] is None:
            return None
        from sacrebleu.metrics.helpers import extract_all_char_ngrams

        grams = (extract_all_char_ngrams(scored[k].strip(), self.order) for k in ("text", "text_ref"))
        rows = [(sum(h.values()) if r else 0, sum(r.values()), sum((h & r).values())) for h, r in zip(*grams)]
        return np.array(rows, dtype=np.float64).reshape(-1)

    def total(self, statistics: np.ndarray) -> float:
        """100 (1 + b^2) P R / (b^2 P + R), P and R averaged over the orders that both sides have."""
        answer, reference, both = statistics.reshape(-1, 3).T
        used = (answer > 0) & (reference > 0)
        if not used.any():
            return 0.0
        precision, recall = (both[used] / answer[used]).mean(), (both[used] / reference[used]).mean()
        denominator = self.beta**2 * precision + recall
        return float(100 * (1 + self.beta**2) * precision * recall / denominator) if denominator else 0.0


# ------------------------------------------------------------------------------------------------- length and cost


class _Ratio(Metric):
    """A ratio of two sums.  Statistics: numerator, denominator."""

    rests_on: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "ratio"

    def total(self, statistics: np.ndarray) -> float:
        """Sum over sum."""
        return ratio(statistics[0], statistics[1])


@METRIC.register("length_ratio")
@dataclass(frozen=True)
class LengthRatio(_Ratio):
    """Seconds of speech made over seconds of the reference's speech; 1 is right, neither direction is better."""

    best: ClassVar[float] = 1.0
    counts_seconds: ClassVar[bool] = True

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: seconds made, seconds of the reference."""
        if scored["audio_s"] is None or not scored.get("ref_audio_s"):
            return None
        return np.array([scored["audio_s"], scored["ref_audio_s"]], dtype=np.float64)


@METRIC.register("rtf")
@dataclass(frozen=True)
class RealTimeFactor(_Ratio):
    """Seconds spent decoding over seconds of speech made, without the codec's decoder; below 1: faster than speech."""

    counts_seconds: ClassVar[bool] = True

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: decode seconds, speech seconds."""
        if scored["audio_s"] is None or scored["seconds"] is None:
            return None
        return np.array([scored["seconds"], scored["audio_s"]], dtype=np.float64)


@METRIC.register("calls_per_second")
@dataclass(frozen=True)
class CallsPerSecond(_Ratio):
    """Network calls, of both kinds, per second of speech made."""

    unit: ClassVar[str] = "1/s"
    counts_seconds: ClassVar[bool] = True

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: calls, speech seconds."""
        if scored["audio_s"] is None:
            return None
        return np.array([sum(scored["calls"].values()), scored["audio_s"]], dtype=np.float64)


@METRIC.register("first_block_latency")
@dataclass(frozen=True)
class FirstBlockLatency(_Ratio):
    """Mean seconds from the prompt to the first finished block of audio, over answers that have one."""

    unit: ClassVar[str] = "s"

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: seconds, 1; None when no block was finished."""
        first = scored["first_block_s"]
        return None if first is None else np.array([first, 1], dtype=np.float64)


def _answer_and_reference(scored: Mapping[str, Any], spoken: bool) -> tuple[str | None, str | None]:
    keys = ("judged_text", "speech_ref") if spoken else ("text", "text_ref")
    return scored[keys[0]], scored[keys[1]]


# ------------------------------------------------------------------------------------------------- the true answer


@METRIC.register("forced")
@dataclass(frozen=True)
class Forced(Metric):
    """A statistic of the objective on the true answers, with ``eval.forced``: top-10 accuracy, mean -log p, perplexity."""

    stat: str = ""  # its name in the log: top10/ar, nll/nar/book1, ppl/book0, ...

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The statistic is part of the metric's name."""
        return (self.stat,)

    @property
    def unit(self) -> str:
        """Shares are printed in per cent."""
        return "rate" if self.stat.startswith("top10/") else "score"

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Of shares; -log p should be low."""
        return self.stat.startswith("top10/")

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: sum, count; None where the objective has no such statistic."""
        pair = (scored.get("forced") or {}).get(self.stat)
        return None if pair is None else np.array(pair, dtype=np.float64)

    def total(self, statistics: np.ndarray) -> float:
        """Sum over count; of a perplexity its exponential."""
        mean = ratio(statistics[0], statistics[1])
        return float(np.exp(mean)) if self.stat.startswith("ppl/") else mean


# ------------------------------------------------------------------------------------------------- sound against sound


class _Mean(Metric):
    """Mean of a number of each item.  Statistics: sum, items."""

    unit: ClassVar[str] = "score"
    needs_audio: ClassVar[bool] = True
    compares: ClassVar[bool] = True  # needs the sounds of answer, reference and prompt (`ttt.eval.sound_distance`)

    def total(self, statistics: np.ndarray) -> float:
        """Sum over items."""
        return ratio(statistics[0], statistics[1])


@METRIC.register("mel_distance")
@dataclass(frozen=True)
class MelDistance(_Mean):
    """Distance of the speech made to the true answer's: dB between log-mels, time-warped (`mel_distance`).

    True is the recording, where the corpus holds it, else the true codes through the codec; the name says which.
    """

    rests_on: ClassVar[tuple[str, ...]] = ("dtw", "reference")

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: dB, 1; None without a spoken reference."""
        value = scored.get("mel_distance_db")
        return None if value is None else np.array([value, 1], dtype=np.float64)


@METRIC.register("speaker_similarity")
@dataclass(frozen=True)
class SpeakerSimilarity(_Mean):
    """Cosine of the voices of the speech made and of the spoken prompt; an answer without speech counts as 0.

    The prompt is heard through the codec, as the model heard it (VALL-E's SIM-r).
    """

    rests_on: ClassVar[tuple[str, ...]] = ("speaker",)
    higher_is_better: ClassVar[bool] = True

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: cosine, 1; None without a spoken prompt."""
        value = scored.get("speaker_similarity")
        return None if value is None else np.array([value, 1], dtype=np.float64)
