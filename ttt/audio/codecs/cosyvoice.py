"""CosyVoice's decoder: a flow-matching model turns speech tokens into mels in the voice of a prompt, a vocoder into sound.

The package ``cosyvoice`` (arXiv 2407.05407) and its weights come from local folders; nothing is downloaded.  Only
decoding: tokens come with the data, or from a model.
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

from ttt.audio.codecs.checks import check_codes
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
    """CosyVoice's decoder: ``path`` the model folder, ``code`` the folder of its program (empty: it is installed).

    ``prompt``: a wav of the voice to speak with; ``speed`` 1.2 speaks a fifth faster.  Rates and the number of codes
    are the model's own: v1 has 50 tokens of 4,096 a second and sounds at 22,050 Hz, v2 25 of 6,561 at 24,000 Hz.
    """

    path: str = ""
    code: str = ""
    prompt: str = ""
    speed: Annotated[float, Range(ge=0.25, le=4)] = 1.0

    codec_id = ""
    num_codebooks = 1

    def load(self, device: str = "cpu", dtype: str = "float32") -> CosyVoice:
        """Load model and prompt; returns self.  The program picks the device itself: a GPU where torch sees one.

        Raises `ConfigError` when that is not the kind of ``device``.  float16 is given to the program as ``fp16``.
        """
        refuse_dtype(self, "codec", dtype, ("float32", "float16"))
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
        return self

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Not here: raises `ConfigError`."""
        raise ConfigError(
            "codec: cosyvoice only decodes; its tokens come with the data ('ttt data convert --from slam_omni') or from a model"
        )

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Sound of each code sequence, each in one go; F / frame rate seconds long at speed 1."""
        return [Waveform(self._sound(c.ids), self.rate_hz) for c in codes]

    def open_stream(self) -> StreamDecoder:
        """Decodes a moving window of two seconds and cross-fades from window to window.  At speed 1 only."""
        if self.speed != 1.0:
            raise ConfigError(f"codec.speed: {self.speed:g} cannot be streamed; use 1, or decode whole answers")
        second = round(self.frame_rate_hz)
        return WindowStream(self, past=2 * second, future=second // 5, fade=second // 5)

    def _sound(self, ids: np.ndarray) -> np.ndarray:
        import torch

        if not hasattr(self, "_model"):
            raise CheckpointError("codec 'cosyvoice' holds no weights yet: call load() (codec.path)")
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
