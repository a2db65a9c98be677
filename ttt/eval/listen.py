"""Generations -> sound -> what a judge hears and how far the sound is from the true one.

Letters: ``F`` audio frames, ``Q`` codebooks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from ttt.audio.loading import load_plugin
from ttt.errors import ConfigError, DataError
from ttt.eval.cards import key_prefix
from ttt.eval.generations import Pair, answer_codes, group_of, prompt_codes
from ttt.eval.metrics import needs_codec, rests_on
from ttt.eval.sound_distance import Comparison, compare
from ttt.eval.true_recordings import TrueRecordings
from ttt.interfaces import Codec, Judge, Metric, Normalizer, SpeakerEncoder
from ttt.registry import name_of
from ttt.types import AudioCodes, Example, Waveform

log = logging.getLogger(__name__)
_BATCH = 32  # waveforms decoded and transcribed together

Metrics = Mapping[str, Mapping[str, Metric]]  # task -> {name in the report: metric}


@dataclass(frozen=True)
class Instruments:
    """What measures: judge and speaker encoder where a metric needs them, the codec where answers are spoken."""

    judge: Judge | None
    codec: Codec | None
    normalizer: Normalizer
    speaker: SpeakerEncoder | None = None
    recordings: TrueRecordings = TrueRecordings()

    @property
    def names(self) -> dict[str, str]:
        """Names that metrics rest on; "" for what is not there."""
        return {
            "judge": self.judge.judge_id if self.judge is not None else "",
            "codec": self.codec.codec_id if self.codec is not None else "",
            "normalizer": name_of(self.normalizer),
            "speaker": self.speaker.speaker_id if self.speaker is not None else "",
        }

    def ready_for(self, pairs: Sequence[Pair], metrics: Metrics) -> Instruments:
        """The same with weights loaded.

        Raises `ConfigError` when something is missing that a metric or the answers need, `DataError` for codes that are not
        the codec's.
        """
        for task, metrics_of_task in metrics.items():
            for name, metric in metrics_of_task.items():
                metric.load()
                for needed, given in (("judge", self.judge), ("speaker", self.speaker)):
                    if needed in rests_on(metric) and given is None:
                        raise ConfigError(f"{needed}: missing; metric {name!r} of task {task!r} needs one")
        heard = {task for task, own in metrics.items() if any(map(needs_codec, own.values()))}
        spoken = next((r for e, r in pairs if len(r.codes) and e.task in heard), None)
        if spoken is not None and self.codec is None:
            raise ConfigError(f"codec: missing; {spoken.where} holds speech")
        judge, codec, speaker = self.judge, self.codec, self.speaker
        if judge is not None and not getattr(judge, "judge_id", ""):
            judge = load_plugin(judge, "judge")
        if codec is not None and not getattr(codec, "codec_id", ""):
            codec = load_plugin(codec, "codec")
        if speaker is not None and not getattr(speaker, "speaker_id", ""):
            speaker = load_plugin(speaker, "speaker")
        if codec is not None:
            _check_codes(pairs, codec)
        return replace(self, judge=judge, codec=codec, speaker=speaker)


@dataclass(frozen=True)
class Heard:
    """By index of the pair.

    ``texts``: what the judge heard; "" for an answer without speech, None where no metric needs a judge.  ``waves``: the sounds
    that were asked to be kept.  ``timing``: seconds of decoding, codec and judge, and of sound.
    """

    texts: Sequence[str | None]
    comparisons: Sequence[Comparison]
    waves: Mapping[int, Waveform]
    timing: Mapping[str, float]


def groups_with_recordings(pairs: Sequence[Pair], metrics: Metrics, recordings: TrueRecordings) -> set[tuple[str, str]]:
    """Groups (split, task) whose answers are all compared with true recordings; in the others no answer is."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair), []).append(pair[0])
    complete = set()
    for (split, task), examples in groups.items():
        if not any("reference" in rests_on(m) for m in metrics[task].values()):
            continue
        spoken = [e for e in examples if answer_codes(e) is not None]
        if spoken and all(recordings.holds(e) for e in spoken):
            complete.add((split, task))
        elif spoken:
            log.info(
                "score: %s%s: no recordings of all answers; compared with their codes through the codec",
                key_prefix(split),
                task,
            )
    return complete


def listen(
    pairs: Sequence[Pair], metrics: Metrics, instruments: Instruments, recorded: Set[tuple[str, str]], keep: Set[int] = frozenset()
) -> Heard:
    """Sounds of all answers, made and heard in batches of similar length.

    ``recorded``: the groups whose true sound is the recording; in the others it is the true codes through the codec.
    ``keep``: indices whose waveforms are kept.
    """
    codec, judge = instruments.codec, instruments.judge
    judged = {task for task, own in metrics.items() if any("judge" in rests_on(m) for m in own.values())}
    compared = {task for task, own in metrics.items() if any(getattr(m, "compares", False) for m in own.values())}
    texts: list[str | None] = [("" if e.task in judged else None) for e, _ in pairs]
    comparisons = [Comparison()] * len(pairs)
    waves: dict[int, Waveform] = {}
    timing = {"decode_s": sum(r.seconds for _, r in pairs), "codec_s": 0.0, "judge_s": 0.0, "audio_s": 0.0}
    if codec is None:  # then no metric needs sound (`Instruments.ready_for`)
        return Heard(texts, comparisons, waves, timing)

    def decode(codes: Sequence[np.ndarray]) -> list[Waveform]:
        started = time.perf_counter()
        decoded = codec.decode([AudioCodes(c, codec.frame_rate_hz, codec.codec_id) for c in codes])
        timing["codec_s"] += time.perf_counter() - started
        return decoded

    def wave_of(codes: np.ndarray | None) -> Waveform | None:
        return decode([codes])[0] if codes is not None and len(codes) else None

    def true_sound(pair: Pair) -> Waveform | None:
        codes = answer_codes(pair[0])
        if codes is not None and len(codes) and group_of(pair) in recorded:
            return instruments.recordings.answer(pair[0], codec.code_rate_hz)
        return wave_of(codes)

    order = sorted(
        (
            i for i, (e, r) in enumerate(pairs)
            if e.task in compared or (len(r.codes) and (e.task in judged or i in keep))
        ),
        key=lambda i: (len(pairs[i][1].codes), i),
    )  # fmt: skip
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        spoken = [i for i in batch if len(pairs[i][1].codes)]
        decoded = dict(zip(spoken, decode([pairs[i][1].codes for i in spoken]), strict=True)) if spoken else {}
        timing["audio_s"] += sum(w.duration_s for w in decoded.values())
        waves |= {i: w for i, w in decoded.items() if i in keep}
        to_judge = [i for i in decoded if pairs[i][0].task in judged]
        if to_judge:
            assert judge is not None
            started = time.perf_counter()
            for i, text in zip(to_judge, judge.transcribe([decoded[i] for i in to_judge]), strict=True):
                texts[i] = text
            timing["judge_s"] += time.perf_counter() - started
        to_compare = [i for i in batch if pairs[i][0].task in compared]
        silence = Waveform(np.zeros(0, dtype=np.float32), codec.rate_hz)
        found = compare(
            [decoded.get(i, silence) for i in to_compare],
            [true_sound(pairs[i]) for i in to_compare],
            [wave_of(prompt_codes(pairs[i][0])) for i in to_compare],
            instruments.speaker,
        )
        for i, comparison in zip(to_compare, found, strict=True):
            comparisons[i] = comparison
    return Heard(texts, comparisons, {i: waves[i] for i in sorted(waves)}, timing)


def _check_codes(pairs: Sequence[Pair], codec: Codec) -> None:
    for _, record in pairs:
        ids = record.codes
        if len(ids) and (ids.shape[1] != codec.num_codebooks or ids.min() < 0 or ids.max() >= codec.num_codes):
            raise DataError(
                f"{record.where}: codes must be [F, {codec.num_codebooks}] in 0 .. {codec.num_codes - 1} for codec "
                f"{codec.codec_id!r}, got {list(ids.shape)} with {ids.min()} .. {ids.max()}"
            )
