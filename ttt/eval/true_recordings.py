"""The recordings that examples were made of: what the speech of an answer was before any codec."""

from __future__ import annotations

from pathlib import Path

from ttt.audio.sound import Sound
from ttt.audio.wav import read
from ttt.data.manifest import Utterance, read_manifest, wav_path
from ttt.errors import ConfigError, DataError
from ttt.eval.generations import answer_codes, prompt_codes
from ttt.types import Example, Waveform

_SLACK_FRAMES, _SLACK_S = 3, 0.25  # codecs round recordings up or down to whole frames


class TrueRecordings:
    """Original sound of answers, from the manifests ``{split}.jsonl`` of a corpus folder (None: there is no corpus).

    An example names the recording that holds its prompt and its answer: ``meta["utterance"]`` of the split ``meta["split"]``.
    Examples of tasks that do not (all but continuation) have no recording here.
    """

    def __init__(self, corpus: str | Path | None = None) -> None:
        self.corpus = Path(corpus) if corpus else None
        self._manifests: dict[str, dict[str, Utterance]] = {}

    def holds(self, example: Example) -> bool:
        """Is the recording of this example there?"""
        entry = self._find(example)
        return entry is not None and Sound.of(entry[0]).file.is_file()

    def answer(self, example: Example, frame_rate_hz: float) -> Waveform:
        """The recording from where the prompt's frames end.  Raises `DataError` when it is not as long as the codes.

        ``frame_rate_hz``: `Codec.code_rate_hz`; 0 is refused with a `ConfigError`.
        """
        entry, codes, before = self._find(example), answer_codes(example), prompt_codes(example)
        assert entry is not None and codes is not None, "ask `holds` first"
        path, utterance = entry
        if not frame_rate_hz:
            raise ConfigError(
                f"{path}: the codec removes runs of equal codes, so where the prompt ends in the recording is not known: score "
                "without data.corpus, or with codec.dedup=false"
            )
        wave = read(path, mono=True)
        begins_s = len(before) / frame_rate_hz if before is not None else 0.0
        codes_s = begins_s + len(codes) / frame_rate_hz
        if abs(codes_s - wave.duration_s) > max(_SLACK_FRAMES / frame_rate_hz, _SLACK_S):
            raise DataError(
                f"{path}: recording {utterance.id!r} is {wave.duration_s:.2f} s long, the codes of example {example.uid!r} are "
                f"{codes_s:.2f} s; data.corpus is not what the examples were made of"
            )
        return Waveform(wave.samples[round(begins_s * wave.rate_hz) :], wave.rate_hz)

    def _find(self, example: Example) -> tuple[Path, Utterance] | None:
        name, split = example.meta.get("utterance"), str(example.meta.get("split") or "")
        if self.corpus is None or not name or not split:
            return None
        manifest = self.corpus / f"{split}.jsonl"
        if split not in self._manifests:
            utterances = read_manifest(manifest, check_files=False) if manifest.is_file() else []
            self._manifests[split] = {u.id: u for u in utterances}
        utterance = self._manifests[split].get(str(name))
        return None if utterance is None else (wav_path(manifest, utterance), utterance)
