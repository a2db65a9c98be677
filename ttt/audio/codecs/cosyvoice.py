"""CosyVoice: sound -> tokens (package ``s3tokenizer``), and tokens -> sound in the voice of a prompt (program ``cosyvoice``).

To decode, a flow-matching model turns tokens into mels and a vocoder mels into sound (arXiv 2407.05407).  Programs and
weights come from local files; nothing is downloaded.  Either half works without the other.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ttt.audio.codecs.checks import check_codes, check_wave
from ttt.audio.codecs.cosyvoice_tokenizer import RATE_HZ, SpeechTokenizer, TokenizerVersion
from ttt.audio.codecs.cosyvoice_tokenizer import VERSIONS as VERSIONS_OF_TOKENIZER
from ttt.audio.loading import refuse_dtype
from ttt.audio.signal import resample
from ttt.audio.streaming import WindowStream
from ttt.audio.wav import read, write
from ttt.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from ttt.interfaces import Codec, StreamDecoder
from ttt.registry import Range
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

PROMPT_RATE_HZ = 16000  # of the prompt as the package takes it
PROMPT_S = (1.0, 30.0)  # 3 to 10 s of clean speech are best
# The file that tells a version from the others -> the class that reads it.
VERSIONS = {"cosyvoice3.yaml": "CosyVoice3", "cosyvoice2.yaml": "CosyVoice2", "cosyvoice.yaml": "CosyVoice"}


@CODEC.register("cosyvoice")
@dataclass
class CosyVoice(Codec):
    """CosyVoice's speech tokens: encoded by ``tokenizer``, decoded by the model folder ``path``; either may be left out.

    Rates and the number of codes are the model's own: v1 has 50 tokens of 4,096 a second and sounds at 22,050 Hz, v2 and v3
    25 of 6,561 at 24,000 Hz.  All take recordings at 16,000 Hz.
    """

    path: str = ""  # to decode: the model folder
    code: str = ""  # to decode: the folder of CosyVoice's program; empty: it is installed
    prompt: str = ""  # to decode: a wav of the voice to speak with
    speed: Annotated[float, Range(ge=0.25, le=4)] = 1.0  # 1.2 speaks a fifth faster
    tokenizer: str = ""  # to encode: the file speech_tokenizer_v1.onnx, _v2.onnx or _v3.onnx (needs the package s3tokenizer)
    # to encode: which tokenizer the file is; it is never guessed from the file's name
    tokenizer_version: TokenizerVersion = ""

    codec_id = ""
    num_codebooks = 1

    def load(self, device: str = "cpu", dtype: str = "float32") -> CosyVoice:
        """Load tokenizer, model and prompt, those that are named; returns self.

        The program picks the device of the decoder itself, a GPU where torch sees one: raises `ConfigError` when that is not
        the kind of ``device``.  float16 is given to the program as ``fp16``; the tokenizer stays float32.
        """
        refuse_dtype(self, "codec", dtype, ("float32", "float16"))
        self._tokenizer = self._open_tokenizer(device)
        if self.path or self._tokenizer is None:
            self._load_decoder(device, dtype)
        made = VERSIONS_OF_TOKENIZER.get(self.tokenizer_version)
        if self._tokenizer is None or made is None:
            return self
        facts = (made.frame_rate_hz, made.num_codes)
        if self.path and (self.frame_rate_hz, self.num_codes) != facts:
            raise ConfigError(
                f"codec.tokenizer_version: {self.tokenizer_version} makes {facts[0]:g} tokens of {facts[1]} a second, the model in "
                f"{self.path} takes {self.frame_rate_hz:g} of {self.num_codes}; name the tokenizer that belongs to the model"
            )
        self.rate_hz = self.rate_hz if self.path else made.sound_rate_hz
        self.frame_rate_hz, self.num_codes = facts
        # of what makes the codes: with or without a decoder, and with any voice, they are the same
        self.codec_id = f"cosyvoice-{self.tokenizer_version}-{self._tokenizer.digest}"
        return self

    def _open_tokenizer(self, device: str) -> SpeechTokenizer | None:
        if bool(self.tokenizer) != bool(self.tokenizer_version):
            lacks = "tokenizer_version" if self.tokenizer else "tokenizer"
            raise ConfigError(
                f"codec.{lacks}: not set; to encode, name the file (codec.tokenizer) and which tokenizer it is "
                f"(codec.tokenizer_version: {', '.join(VERSIONS_OF_TOKENIZER)})"
            )
        if not self.tokenizer:
            return None
        return SpeechTokenizer(Path(self.tokenizer), VERSIONS_OF_TOKENIZER[self.tokenizer_version], device)

    def _load_decoder(self, device: str, dtype: str) -> None:
        folder = Path(self.path)
        version = next((v for v in VERSIONS if self.path and (folder / v).is_file()), None)
        if version is None:
            raise CheckpointError(
                f"codec.path: {self.path or 'not set'}: no CosyVoice model here; name a folder with "
                f"{' or '.join(sorted(VERSIONS))}, flow.pt and hift.pt"
            )
        prompt = self._prompt_wave()
        program = self._program()
        make = getattr(program, VERSIONS[version])
        if dtype == "float16" and "fp16" not in inspect.signature(make).parameters:
            refuse_dtype(self, "codec", dtype)
        try:
            made = make(str(folder), **({"fp16": True} if dtype == "float16" else {}))
        except Exception as error:  # the program raises many kinds for damaged or incomplete folders
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{folder}: CosyVoice cannot load it: {type(error).__name__}: {reason}") from error
        self._model = made.model
        picked = str(getattr(made.model, "device", device))
        if picked.partition(":")[0] != device.partition(":")[0]:
            raise ConfigError(
                f"codec.device: the CosyVoice program computes on {picked}, not on {device}; it takes a GPU where it sees one: "
                f"set codec.device={picked}" + (", or hide the GPU with CUDA_VISIBLE_DEVICES=''" if device == "cpu" else "")
            )
        self.rate_hz = int(made.sample_rate)
        flow = made.model.flow
        self.num_codes, self.frame_rate_hz = int(flow.vocab_size), float(flow.input_frame_rate)
        self._voice = _voice(made.frontend, prompt, self.rate_hz)
        digest = hashlib.blake2b(prompt.samples.tobytes(), digest_size=4)
        for name in ("flow.pt", "hift.pt"):
            if (folder / name).is_file():
                with (folder / name).open("rb") as data:
                    digest.update(data.read(1 << 20))
        self.codec_id = f"cosyvoice-{digest.hexdigest()}"

    @property
    def encode_rate_hz(self) -> int:
        """16,000: the rate that all its tokenizers take."""
        return RATE_HZ

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Tokens of each recording.  Raises `ConfigError` without a tokenizer."""
        if not hasattr(self, "_tokenizer"):
            raise CheckpointError("codec 'cosyvoice' holds no weights yet: call load() (codec.path, codec.tokenizer)")
        if self._tokenizer is None:
            raise ConfigError(
                "codec: cosyvoice encodes with codec.tokenizer and codec.tokenizer_version, which are not set; without them "
                "its tokens come with the data ('ttt data convert --from slam_omni') or from a model"
            )
        for wave in waves:
            check_wave(wave, self.encode_rate_hz, "cosyvoice")
        made = self._tokenizer.encode([wave.samples for wave in waves])
        return [AudioCodes(ids[:, None], self.frame_rate_hz, self.codec_id) for ids in made]

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Sound of each code sequence, each in one go; F / frame rate seconds long at speed 1."""
        self._needs_decoder()
        return [Waveform(self._sound(c.ids), self.rate_hz) for c in codes]

    def open_stream(self) -> StreamDecoder:
        """Decodes a moving window of two seconds and cross-fades from window to window.  At speed 1 only."""
        self._needs_decoder()
        if self.speed != 1.0:
            raise ConfigError(f"codec.speed: {self.speed:g} cannot be streamed; use 1, or decode whole answers")
        second = round(self.frame_rate_hz)
        return WindowStream(self, past=2 * second, future=second // 5, fade=second // 5)

    def _needs_decoder(self) -> None:
        if not hasattr(self, "_model"):
            if getattr(self, "_tokenizer", None) is not None:
                raise ConfigError("codec.path: not set; cosyvoice decodes with a model folder, its program and a prompt")
            raise CheckpointError("codec 'cosyvoice' holds no weights yet: call load() (codec.path)")

    def _sound(self, ids: np.ndarray) -> np.ndarray:
        import torch

        check_codes(ids, self.num_codes, 1, "cosyvoice")
        if not len(ids):
            return np.zeros(0, dtype=np.float32)
        token = torch.tensor(ids[:, 0][None].astype(np.int32))  # [1, F]
        # Versions with separate methods for text and speech name this one `vc`; others have `tts` for both.
        job = getattr(self._model, "vc", None) or self._model.tts
        with torch.no_grad():
            parts = [
                p["tts_speech"] for p in job(source_speech_token=token, **self._voice, stream=False, speed=self.speed)
            ]
        samples = torch.cat(parts, -1).float().cpu().numpy().reshape(-1).clip(-1.0, 1.0)
        if self.speed != 1.0:
            return samples
        # Mel frames and tokens do not divide each other: fill up, or cut, by less than one of them.
        whole = round(len(ids) * self.rate_hz / self.frame_rate_hz)
        samples = samples[:whole]
        return np.pad(samples, (0, whole - len(samples)))

    def _prompt_wave(self) -> Waveform:
        if not self.prompt or not Path(self.prompt).is_file():
            raise ConfigError(
                f"codec.prompt: {self.prompt or 'not set'}: no such file; name a wav of the voice to speak with, 3 to 10 s of "
                "clean speech"
            )
        wave = read(Path(self.prompt), mono=True)
        if not PROMPT_S[0] <= wave.duration_s <= PROMPT_S[1]:
            raise DataError(
                f"{self.prompt}: {wave.duration_s:.1f} s; a prompt lasts {PROMPT_S[0]:g} to {PROMPT_S[1]:g} s, 3 to 10 s are best"
            )
        return resample(wave, PROMPT_RATE_HZ)

    def _program(self) -> Any:
        if self.code:
            home = Path(self.code)
            if not (home / "cosyvoice").is_dir():
                raise ConfigError(
                    f"codec.code: {home}: no folder 'cosyvoice' in it; name the top folder of the CosyVoice program"
                )
            for place in (home / "third_party" / "Matcha-TTS", home):
                if place.is_dir() and str(place) not in sys.path:
                    sys.path.insert(0, str(place))
        try:
            return importlib.import_module("cosyvoice.cli.cosyvoice")
        except ImportError as error:
            raise MissingExtraError(
                f"codec: cosyvoice needs the CosyVoice program ({error}): name its folder with codec.code and install what it needs"
            ) from error


def _voice(frontend: Any, prompt: Waveform, rate_hz: int) -> dict[str, Any]:
    """What decoding takes from the prompt: its tokens, its mels at the model's own rate, and the speaker's embedding."""
    import torch

    needs = list(inspect.signature(frontend.frontend_vc).parameters)
    with tempfile.TemporaryDirectory(prefix="ttt-prompt-") as scratch:
        prompt_input: Any = torch.from_numpy(prompt.samples)[None]  # [1, S]
        if any("wav" in name for name in needs):  # later versions read the file themselves
            write(Path(scratch) / "prompt.wav", prompt)
            prompt_input = str(Path(scratch) / "prompt.wav")
        features = frontend.frontend_vc(prompt_input, prompt_input, *((rate_hz,) if len(needs) > 2 else ()))
    keys = ("flow_prompt_speech_token", "prompt_speech_feat", "flow_embedding")
    return {key: features[key] for key in keys}
