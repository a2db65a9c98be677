"""Sound of an answer, through the user's own program: a finished file, or a pipe that is filled while the answer is written."""

from __future__ import annotations

import shlex
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ttt.audio.streaming import ChunkedSound
from ttt.errors import ConfigError
from ttt.interfaces import Codec

PIPE = "-"  # last word of a command that reads the sound from its standard input
_UNKNOWN = 0xFFFFFFFF  # size in the header of a wav whose end is not known yet


def check_player(command: str) -> None:
    """Refuse a command for ``--play`` that cannot be run."""
    mend = "name one that takes a wav file, e.g. 'aplay -q', or its standard input, e.g. 'aplay -q -'"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--play: {command!r} cannot be split into words ({error}); {mend}") from error
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"--play: no program {command!r}; {mend}")


def is_pipe(command: str) -> bool:
    """Does the command read the sound from its standard input?"""
    return shlex.split(command)[-1:] == [PIPE]


def play_file(command: str, wav: Path) -> str:
    """Run the command with a wav; -> what went wrong, in one line ("": nothing)."""
    done = subprocess.run([*shlex.split(command), str(wav)], capture_output=True, text=True)
    return (done.stderr or done.stdout).strip()[:200] or f"exit code {done.returncode}" if done.returncode else ""


class LivePlayer:
    """Plays one answer while it is written: the codec's stream turns codes into sound, which goes down the pipe as a wav."""

    def __init__(self, command: str, codec: Codec) -> None:
        self._command, self._rate_hz = command, codec.rate_hz
        self._sound = ChunkedSound(codec)
        self._frames = 0
        self._player: subprocess.Popen[bytes] | None = None
        self._errors: Any = None

    def push(self, codes: np.ndarray) -> None:
        """All codes [F, Q] of the answer so far; those that are new are played."""
        for samples in self._sound.push(codes[self._frames :]):
            self._write(samples)
        self._frames = len(codes)

    def finish(self, codes: np.ndarray) -> str:
        """The rest; waits until the player has ended.  -> what went wrong, in one line ("": nothing)."""
        self.push(codes)
        if self._frames:
            self._write(self._sound.finish())
        if self._player is None:
            return ""
        try:
            self._player.communicate()
        except BrokenPipeError:
            self._player.wait()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()[:200]
        self._errors.close()
        return words or f"exit code {self._player.returncode}" if self._player.returncode else ""

    def stop(self) -> None:
        """The answer is of no interest any more: end the player."""
        if self._player is not None and self._player.poll() is None:
            self._player.terminate()
            self._player.wait()

    def _write(self, samples: np.ndarray) -> None:
        if self._player is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (read when the player has ended)
            self._player = subprocess.Popen(
                shlex.split(self._command), stdin=subprocess.PIPE, stdout=self._errors, stderr=self._errors,
            )  # fmt: skip
            self._send(_wav_header(self._rate_hz))
        self._send((np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes())

    def _send(self, data: bytes) -> None:
        assert self._player is not None and self._player.stdin is not None
        try:
            self._player.stdin.write(data)
            self._player.stdin.flush()
        except BrokenPipeError:  # it has ended; `finish` says why
            pass


def _wav_header(rate_hz: int) -> bytes:
    """Of a mono wav of 16 bit with an unknown number of samples."""
    form = struct.pack("<HHIIHH", 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    unknown = struct.pack("<I", _UNKNOWN)
    return b"RIFF" + unknown + b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + unknown
