"""Speech synthesis by espeak-ng (through its C library) and, where installed, flite; every result is checked.

A `Voice` is a set of parameters, `speak` turns a list of texts into checked 16 kHz waveforms or reasons for refusal.
Letters: ``S`` wav samples.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttt.audio import wav
from ttt.audio.signal import resample
from ttt.errors import MissingExtraError, TttError
from ttt.types import Waveform

RATE_HZ = 16_000
MEND = "pip install espeakng-loader (or the system package libespeak-ng1), then run again"

EDGE_SILENCE_S = 0.05  # kept before the first and after the last sound
EDGE_LEVEL = 0.01  # what counts as sound there, of full scale
MIN_S_PER_LETTER, MAX_S_PER_LETTER = 0.03, 0.25  # shorter or longer is not this text
CLIPPED_LEVEL = 0.999


@dataclass(frozen=True)
class Voice:
    """One speaker.  ``engine`` "espeak" or "flite"; ``base`` the engine's name of it; ``gender`` is for the report.

    ``rate_wpm`` words per minute; ``pitch`` and ``pitch_range`` 0 .. 99 (50 is the base's own); ``gap_ms`` silence
    added between words; ``volume`` 100 is espeak's own, where some bases clip.  flite takes only its base.
    """

    name: str
    base: str
    gender: str
    rate_wpm: int = 165
    pitch: int = 50
    pitch_range: int = 50
    gap_ms: int = 0
    volume: int = 85
    engine: str = "espeak"


# fmt: off
TRAINED = (
    Voice("f1", "en-us+f1", "female", 180, 50),
    Voice("f4", "en-us+f4", "female", 195, 70),
    Voice("f5", "en-us+f5", "female", 185, 40),
    Voice("annie", "en-us+Annie", "female", 190, 45),
    Voice("m1", "en-us+m1", "male", 185, 55),
    Voice("max", "en-us+max", "male", 195, 65),
    Voice("m4", "en-us+m4", "male", 190, 30),
    Voice("m7", "en-us+m7", "male", 180, 60),
)
UNSEEN = (
    Voice("f3", "en-us+f3", "female", 185, 55),
    Voice("robert", "en-us+robert", "male", 180, 40),
    Voice("edward", "en-us+edward", "male", 195, 75, volume=65),
)
# Variants of espeak-ng that are plainly other speakers (no whisper, no robot), do not clip and say the same twice (Reed and caleb
# do not): many voices, for what must go on in any.
CROWD = tuple(
    Voice(name, f"en-us+{name}", gender, volume=70)
    for gender, names in (
        ("female", "Alicia Andrea anika aunty belinda f2 grandma linda shelby steph"),
        ("male", "Alex Andy Denis Diogo Henrique Hugo Lee Mario Michael Mike Nguyen RicishayMax adam benjamin boris "
                 "david grandpa ian kaukovalta klatt klatt3 klatt4 m2 m3 m5 m6 m8 marcelo michel miguel pablo quincy sandro travis "
                 "victor zac"),
    )
    for name in names.split()
)
OUT = Voice("out", "en-us", "male", 185, 50, pitch_range=20)
FLITE_UNSEEN = tuple(Voice(f"flite_{n}", n, g, engine="flite") for n, g in (("slt", "female"), ("rms", "male")))
# fmt: on


@dataclass(frozen=True)
class Spoken:
    """What became of one text: a checked waveform at `RATE_HZ`, or the reason why there is none."""

    waveform: Waveform | None
    reason: str = ""


def speak(voice: Voice, texts: Sequence[str]) -> Iterator[Spoken]:
    """Say each text.

    Equal (voice, texts) give equal samples.  The same text at another place of the list may differ a little, because
    espeak's flutter and noise run on from one text to the next.
    """
    engine = Flite() if voice.engine == "flite" else Espeak()
    engine.use(voice)
    for text in texts:
        yield _checked(engine.say(text), text)


def _checked(raw: Waveform, text: str) -> Spoken:
    """Trimmed, at `RATE_HZ`, or why not."""
    reason = fault(raw, text)
    waveform = None if reason else resample(trim(raw), RATE_HZ)
    if waveform is not None and np.abs(waveform.samples).max() >= CLIPPED_LEVEL:  # the filter may overshoot
        waveform, reason = None, "clipped"
    return Spoken(waveform, reason)


def fault(raw: Waveform, text: str) -> str:
    """Why this waveform cannot be this text, or ""."""
    samples = raw.samples
    if len(samples) == 0:
        return "empty"
    if not np.isfinite(samples).all():
        return "NaN or infinite samples"
    if wav.level_db(raw) < wav.SILENCE_DB:
        return "silent"
    if (np.abs(samples) >= CLIPPED_LEVEL).any():
        return "clipped"
    letters = sum(not c.isspace() for c in text)
    duration_s = trim(raw).duration_s - 2 * EDGE_SILENCE_S
    if duration_s < MIN_S_PER_LETTER * letters:
        return "too short for its text"
    if duration_s > MAX_S_PER_LETTER * letters:
        return "too long for its text"
    return ""


def speak_timed(voice: Voice, texts: Sequence[str]) -> Iterator[tuple[Spoken, list[float]]]:
    """`speak`, with the second at which each word begins; an utterance whose words cannot be told apart is refused."""
    engine = Espeak()
    engine.use(voice)
    for text in texts:
        raw = engine.say(text)
        spoken = _checked(raw, text)
        loud = np.flatnonzero(np.abs(raw.samples) > EDGE_LEVEL)
        before_s = float(loud[0]) / raw.rate_hz - EDGE_SILENCE_S if len(loud) else 0.0
        starts = [max(0.0, s - before_s) for s in engine.word_starts_s]
        if not spoken.reason and len(starts) != len(text.split()):  # espeak joins some words ("in the")
            spoken = Spoken(None, "words not timed")
        yield spoken, starts


def trim(raw: Waveform) -> Waveform:
    """Cut or pad the silence at both ends to `EDGE_SILENCE_S`."""
    loud = np.flatnonzero(np.abs(raw.samples) > EDGE_LEVEL)
    if len(loud) == 0:
        return raw
    edge = round(EDGE_SILENCE_S * raw.rate_hz)
    start, stop = int(loud[0]) - edge, int(loud[-1]) + 1 + edge
    kept = raw.samples[max(start, 0) : stop]
    padded = np.pad(kept, (max(-start, 0), max(stop - len(raw.samples), 0)))
    return Waveform(padded, raw.rate_hz)


class Espeak:
    """The espeak-ng library behind `use(voice)` and `say(text)`.

    Each object loads a private copy of the library: its inner state (flutter, noise) then starts from zero, and the
    same calls give the same samples in whichever process and after whatever else was said.
    """

    def __init__(self) -> None:
        library, self.data_dir = _espeak_paths()
        self._lib = _private_copy(library)
        self._chunks: list[np.ndarray] = []
        self.word_starts_s: list[float] = []  # of the last text, as the library tells them
        self._callback = _CALLBACK(self._collect)  # kept: ctypes does not
        self._lib.espeak_Info.restype = ctypes.c_char_p
        data = str(self.data_dir).encode() if self.data_dir else None
        self.rate_hz = self._lib.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, _DONT_EXIT)
        if self.rate_hz <= 0:
            raise TttError(f"espeak-ng: cannot initialise with data {self.data_dir or '(default)'}: {MEND}")
        self._lib.espeak_SetSynthCallback(self._callback)

    @property
    def version(self) -> str:
        """The library's version."""
        return self._lib.espeak_Info(None).decode()

    def use(self, voice: Voice) -> None:
        """Select a voice and seed the library's noise."""
        variant = voice.base.partition("+")[2]
        if variant and self.data_dir and not (self.data_dir / "voices" / "!v" / variant).is_file():
            raise TttError(f"voice {voice.name!r}: espeak-ng has no variant {variant!r}: choose another base")
        if self._lib.espeak_SetVoiceByName(voice.base.encode()) != 0:
            raise TttError(f"voice {voice.name!r}: espeak-ng cannot load {voice.base!r}: choose another base")
        settings = {_RATE: voice.rate_wpm, _VOLUME: voice.volume, _PITCH: voice.pitch, _RANGE: voice.pitch_range,
                    _GAP: voice.gap_ms // 10}  # fmt: skip
        for parameter, value in settings.items():
            if self._lib.espeak_SetParameter(parameter, value, 0) != 0:
                raise TttError(f"voice {voice.name!r}: espeak-ng refuses {value} as parameter {parameter}")
        if hasattr(self._lib, "espeak_ng_SetRandSeed"):  # 1.52 and later; older ones have a fixed seed
            self._lib.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def say(self, text: str) -> Waveform:
        """One text at the library's own rate (22,050 Hz): f32 [S], S = 0 if nothing was said."""
        self._chunks.clear()
        self.word_starts_s = []
        data = text.encode()
        failed = self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        if failed or self._lib.espeak_Synchronize():
            return Waveform(np.zeros(0, dtype=np.float32), self.rate_hz)
        pcm = np.concatenate(self._chunks) if self._chunks else np.zeros(0, dtype=np.int16)
        return Waveform(pcm.astype(np.float32) / 32768.0, self.rate_hz)

    def _collect(self, pcm: Any, count: int, events: Any) -> int:
        number = 0
        while events and events[number].type != _LIST_END:
            if events[number].type == _WORD:
                self.word_starts_s.append(events[number].audio_position / 1000)
            number += 1
        if pcm and count > 0:
            self._chunks.append(np.ctypeslib.as_array(pcm, (count,)).copy())
        return 0


class Flite:
    """The `flite` program, one process per text (slow: some 20 ms each)."""

    version = "installed"

    def __init__(self) -> None:
        self._program = shutil.which("flite")
        if self._program is None:
            raise MissingExtraError("flite is not installed: install the system package 'flite', or leave --flite out")
        self._base = "slt"

    def use(self, voice: Voice) -> None:
        """Select a voice."""
        self._base = voice.base

    def say(self, text: str) -> Waveform:
        """One text at flite's own rate: f32 [S], S = 0 if it failed."""
        import soundfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "said.wav"
            command = [str(self._program), "-voice", self._base, "-t", text, "-o", str(path)]
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode != 0 or not path.is_file():
                return Waveform(np.zeros(0, dtype=np.float32), RATE_HZ)
            samples, rate_hz = soundfile.read(str(path), dtype="float32")
        return Waveform(samples, int(rate_hz))


class _Event(ctypes.Structure):
    """``espeak_EVENT``; ``audio_position`` in milliseconds."""

    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    ]  # fmt: skip


_LIST_END, _WORD = 0, 1
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_AUDIO_OUTPUT_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _VOLUME, _PITCH, _RANGE, _GAP = 1, 2, 3, 4, 7


def available() -> str:
    """ "" if espeak-ng can be loaded here, otherwise why not (for tests to skip with)."""
    try:
        Espeak()
    except TttError as error:
        return str(error)
    return ""


def _espeak_paths() -> tuple[str, Path | None]:
    """(library, data folder); the system's library knows its own data folder."""
    try:
        import espeakng_loader
    except ImportError:
        found = next((n for n in ("libespeak-ng.so.1", ctypes.util.find_library("espeak-ng")) if n and _loads(n)), None)
        if found is None:
            raise MissingExtraError(f"espeak-ng is not installed: {MEND}") from None
        return found, None
    return espeakng_loader.get_library_path(), Path(espeakng_loader.get_data_path())


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _private_copy(library: str) -> ctypes.CDLL:
    """Load a copy under another name, so that the loader does not hand out the one already in memory."""
    source = Path(library)
    if not source.is_file():
        source = _mapped(library)
    try:
        with tempfile.NamedTemporaryFile(suffix=".so") as copy:
            copy.write(source.read_bytes())
            copy.flush()
            return ctypes.CDLL(copy.name)
    except OSError as error:
        raise MissingExtraError(f"espeak-ng cannot be loaded from {source} ({error}): {MEND}") from error


def _mapped(name: str) -> Path:
    """The file behind a system library's bare name."""
    ctypes.CDLL(name)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "espeak-ng" in line:
            return Path(line.split(maxsplit=5)[-1])
    raise MissingExtraError(f"espeak-ng: {name} was loaded but its file was not found: {MEND}")
