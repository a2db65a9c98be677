"""Speech tokens to sound: GLM-4-Voice's decoder from its published folder, in one go or as a stream.

Official program: ``flow_inference.py`` (AudioDecoder).  Four of its properties are not kept: dropout stays on while it
decodes, every decode seeds the global generator, a stream loses a mel frame at each joint from the third chunk on (it counts a
cached frame as new), and a stream on the CPU fails.  Noise comes from a generator of its own on the CPU, with the official
seed, so that the same tokens sound the same everywhere.

Letters: ``K`` tokens, ``F`` mel frames, ``M`` mel bins, ``S`` samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttt.audio.codecs.checks import check_codes
from ttt.audio.codecs.glm4voice.files import DecoderConfig, load_weights, read_config
from ttt.audio.codecs.glm4voice.flow import Flow
from ttt.audio.codecs.glm4voice.hift import Hift
from ttt.errors import ConfigError, DataError
from ttt.interfaces import StreamDecoder
from ttt.packed_weights import pack

SEED = 42  # of all noise, as in ConditionalCFM
OVERLAP_TOKENS = 5  # so much of a stream's mel is held back and faded into what comes next
PAST_TOKENS = 100  # 8 s of its own past guide a stream; with all of it, work would grow with the square of the length
BATCH_FRAMES = 16384  # mel frames, padding included, that go through the flow at once


@dataclass(frozen=True)
class Voice:
    """What the flow continues: the ``tokens`` i64 [K] of a recording, its ``mel`` f32 [F, M], a ``speaker`` vector f32 [E].

    The mel is the flow's own: logarithms of 80 bins, 256 samples of 22,050 Hz a frame.  Each may be left out; without a speaker the
    voice is the one that the flow has learned, as in the official program.
    """

    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    mel: np.ndarray | None = None
    speaker: np.ndarray | None = None


class Decoder:
    """Tokens to sound.  ``rate_hz``, ``frame_rate_hz`` (tokens per second) and ``num_codes`` are those of the folder."""

    def __init__(self, config: DecoderConfig, flow: Flow, hift: Hift, device: torch.device) -> None:
        self.flow, self.hift, self.device = flow.eval().requires_grad_(False), hift.eval().requires_grad_(False), device
        self.rate_hz, self.num_codes = config.hift.sampling_rate, config.flow.vocab_size
        self.frame_rate_hz, self.mels = config.flow.input_frame_rate, config.flow.output_size
        self.guidance, self.block_tokens = (
            config.flow.decoder.cfm_params.content.inference_cfg_rate,
            config.flow.encoder.block_size,
        )
        self.samples_per_frame = hift.samples_per_frame
        self._samples_per_token = self.rate_hz / Fraction(self.frame_rate_hz)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        """The decoder in ``folder``; ``dtype`` is that of the velocity U-Net, nine tenths of the flow's work.

        The rest stays float32.  Raises `CheckpointError` naming the file and what is wrong with it.
        """
        folder, place = Path(folder), torch.device(device)
        config = read_config(folder / "config.yaml")
        with torch.device("meta"):
            flow, hift = Flow(config.flow), Hift(config.hift)
        load_weights(flow, folder, "flow")
        load_weights(hift, folder, "hift")
        flow.decoder.to(dtype)
        pack(flow.to(place))
        return cls(config, flow, hift.to(place), place)

    def frames(self, tokens: int) -> int:
        """Mel frames of so many tokens, rounded down: 441 / 64 for each as published."""
        return int(tokens * self._samples_per_token / self.samples_per_frame)

    def samples(self, tokens: int) -> int:
        """Samples of so many tokens: 1764 for each as published."""
        return round(tokens * self._samples_per_token)

    def decode(
        self, tokens: np.ndarray, voice: Voice | None = None, steps: int = 10, guidance: float | None = None
    ) -> np.ndarray:
        """Sound f32 [S] of tokens [K], ``samples(K)`` long; see `decode_batch`."""
        return self.decode_batch([tokens], voice, steps, guidance)[0]

    @torch.no_grad()
    def decode_batch(
        self, rows: Sequence[np.ndarray], voice: Voice | None = None, steps: int = 10, guidance: float | None = None
    ) -> list[np.ndarray]:
        """Sounds of rows of tokens [K_b]; a row sounds the same in any company, but for rounding.

        Whole mel frames end up to 255 samples before the last token does; zeros fill the rest.

        Args:
            voice: what the flow continues, in each row.
            steps: Euler steps of the flow: fewer are faster and rougher.
            guidance: weight of classifier-free guidance; None takes that of the folder, 0 halves the work.

        Raises:
            DataError: tokens outside the codebook; a voice whose parts do not belong together.
        """
        flow = _FlowCall(self, voice, steps, guidance)
        checked = [self.checked(row) for row in rows]
        out: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(rows)
        frames = [flow.frames(len(row)) if len(row) else 0 for row in checked]
        for places in _batches(frames, BATCH_FRAMES):
            generators = [torch.Generator().manual_seed(SEED) for _ in places]
            mels = flow([checked[i] for i in places], [frames[i] for i in places], generators)
            for i, mel, generator in zip(places, mels, generators):
                sound, _ = self.hift(mel[None], generator, mel.new_zeros(1, 0))
                out[i] = _fitted(sound[0].cpu().numpy(), self.samples(len(checked[i])))
        return out

    def open_stream(
        self, voice: Voice | None = None, steps: int = 10, guidance: float | None = None, past_tokens: int = PAST_TOKENS
    ) -> DecoderStream:
        """A stream that gives sound while tokens arrive; arguments as in `decode_batch`.

        ``past_tokens``: about so many of the tokens already sounded guide what comes next.
        """
        return DecoderStream(self, _FlowCall(self, voice, steps, guidance), past_tokens)

    def checked(self, tokens: np.ndarray) -> Tensor:
        """Tokens [K] as i64 on the device.  Raises `DataError` for those outside the codebook."""
        ids = np.asarray(tokens)
        check_codes(ids.reshape(*ids.shape, 1), self.num_codes, 1, "glm4voice")
        return torch.from_numpy(ids.astype(np.int64)).to(self.device)


class _FlowCall:
    """The flow with its voice and settings: tokens, and the mel that some have become, to the mel that follows."""

    def __init__(self, decoder: Decoder, voice: Voice | None, steps: int, guidance: float | None) -> None:
        voice = voice or Voice()
        self.decoder, self.steps = decoder, steps
        self.guidance = decoder.guidance if guidance is None else guidance
        if steps < 1 or not 0 <= self.guidance < float("inf"):
            raise ConfigError(f"glm4voice: steps must be >= 1 and guidance >= 0, got {steps} and {self.guidance:g}")
        self.tokens = decoder.checked(voice.tokens)
        width = decoder.flow.spk_embed_affine_layer.in_features
        mel = np.zeros((0, decoder.mels)) if voice.mel is None else np.asarray(voice.mel)
        speaker = np.zeros(width) if voice.speaker is None else np.asarray(voice.speaker)
        for name, value, shape in (("mel", mel, (len(mel), decoder.mels)), ("speaker", speaker, (width,))):
            if value.shape != shape or not np.isfinite(value).all():
                raise DataError(
                    f"glm4voice: {name} of the voice: expected finite numbers {list(shape)}, got shape {list(value.shape)}; "
                    "make it again"
                )
        self.mel = torch.tensor(mel.T, dtype=torch.float32, device=decoder.device)  # [M, F]
        self.speaker = torch.tensor(speaker, dtype=torch.float32, device=decoder.device)
        if self.frames(1) < 1:
            raise DataError(
                f"glm4voice: mel of the voice: {len(mel)} frames, but its {len(self.tokens)} tokens last "
                f"{decoder.frames(len(self.tokens))}: cut it to them"
            )

    def frames(self, tokens: int) -> int:
        """Mel frames of so many tokens behind the voice."""
        return self.decoder.frames(len(self.tokens) + tokens) - self.mel.shape[1]

    def __call__(
        self,
        rows: Sequence[Tensor],
        frames: Sequence[int],
        generators: Sequence[torch.Generator],
        past: Tensor | None = None,
    ) -> list[Tensor]:
        """Mels [M, n - P] of rows of tokens that last n ``frames``; ``past`` [M, P] is known already."""
        known = self.mel if past is None else torch.cat([self.mel, past], 1)
        shapes = [(1, self.decoder.mels, self.mel.shape[1] + n) for n in frames]
        noise = [torch.randn(shape, generator=g)[0].to(self.decoder.device) for shape, g in zip(shapes, generators)]
        tokens = [torch.cat([self.tokens, row]) for row in rows]
        return self.decoder.flow(tokens, noise, known, self.speaker, self.steps, self.guidance)


class DecoderStream(StreamDecoder):
    """Sound while tokens arrive (AudioDecoder.token2wav); joined, it is as long as the sound in one go.

    Each push runs the flow over the tokens so far, guided by the mel given already.  The last frames, as many as five tokens
    have, are held back and faded into the next ones.  One frame goes through the vocoder twice, the second time with the source of
    the first, so that the sines go on where they were.
    """

    def __init__(self, decoder: Decoder, flow: _FlowCall, past_tokens: int) -> None:
        self._decoder, self._flow = decoder, flow
        self._past_tokens = max(past_tokens, decoder.block_tokens)
        self._overlap = decoder.frames(OVERLAP_TOKENS)
        self._fade = torch.hamming_window(2 * self._overlap, periodic=False, device=decoder.device)
        nothing = flow.mel[:, :0]
        self._tokens = flow.tokens[:0]  # those that the flow still sees
        self._forgotten = 0  # how many came before them
        self._given = nothing  # the mel that they have become
        self._held = nothing  # what follows it, to be faded
        self._edge, self._edge_source = nothing, nothing[:1]  # the frame that goes through the vocoder again
        self._samples = 0  # given so far
        self._new = False  # are there tokens that the flow has not seen?

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Tokens [K, 1] -> the samples f32 [S] that are final by now (none before the sixth token)."""
        check_codes(codes, self._decoder.num_codes, 1, "glm4voice")
        if len(codes):
            self._tokens, self._new = torch.cat([self._tokens, self._decoder.checked(codes[:, 0])]), True
        return self.advance(last=False)

    def finish(self) -> np.ndarray:
        """The rest."""
        whole = self._decoder.samples(self._forgotten + len(self._tokens))
        rest = whole - self._samples
        sound = _fitted(self.advance(last=True), rest)
        self._samples = whole  # the zeros that fill it up count too
        return sound

    @torch.no_grad()
    def advance(self, last: bool) -> np.ndarray:
        """The samples that can be given; if it is the ``last`` time, all of them."""
        ahead = self._flow.frames(self._forgotten) if self._forgotten else 0
        frames = self._flow.frames(self._forgotten + len(self._tokens)) - ahead
        ready = frames - self._given.shape[1] - (0 if last else self._overlap)
        if ready < 1 or not len(self._tokens):
            return np.zeros(0, dtype=np.float32)
        generator = torch.Generator().manual_seed(SEED)
        mel = self._held
        if self._new:
            [mel] = self._flow([self._tokens], [frames], [generator], self._given)
            if n := self._held.shape[1]:
                mel[:, :n] = mel[:, :n] * self._fade[:n] + self._held * self._fade[n:]
            self._new = False
        self._held = mel[:, ready:]
        self._given = torch.cat([self._given, mel[:, :ready]], 1)
        mel = torch.cat([self._edge, mel[:, :ready]], 1)
        sound, source = self._decoder.hift(mel[None], generator, self._edge_source)
        self._edge, self._edge_source = mel[:, -1:], source[:, -self._decoder.samples_per_frame :]
        if not last:
            sound = sound[:, : -self._decoder.samples_per_frame]
        self._forget()
        self._samples += sound.shape[1]
        return sound[0].float().cpu().numpy()

    def _forget(self) -> None:
        """Drop whole blocks of tokens, and their mel, that lie further back than they guide."""
        block = self._decoder.block_tokens
        drop = (len(self._tokens) - self._past_tokens) // block * block
        if drop > 0:
            before = self._flow.frames(self._forgotten) if self._forgotten else 0
            self._forgotten += drop
            self._tokens = self._tokens[drop:]
            self._given = self._given[:, self._flow.frames(self._forgotten) - before :]


def _fitted(sound: np.ndarray, samples: int) -> np.ndarray:
    """``sound`` cut, or filled up with zeros, to so many samples."""
    return np.pad(sound[:samples], (0, max(0, samples - len(sound))))


def _batches(frames: Sequence[int], most: int) -> Iterator[list[int]]:
    """The rows that have frames, in batches of similar length with at most ``most`` frames, padding included."""
    batch: list[int] = []
    for i in sorted((i for i, n in enumerate(frames) if n > 0), key=lambda i: frames[i]):
        if batch and (len(batch) + 1) * frames[i] > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
