"""Codes that another program has computed: lhotse cuts with stored features, and a manifest of arrays.

Every record becomes one example of audio continuation: the first part of the recording is the prompt, the rest the
answer (training may cut anew).  Arrays are read when their record is converted; one HDF5 file stays open at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from ttt.data.convert.chats import write_json
from ttt.data.convert.core import audio, check_duration, check_limits, mapping, record
from ttt.data.read.records import RecordError, raw_records
from ttt.errors import MissingExtraError
from ttt.interfaces import Converter
from ttt.registry import NonNegativeFloat, NonNegativeInt, Range
from ttt.registry.families import CONVERTER


@dataclass
class _Arrays:
    """Stored arrays by file and key."""

    path: Path | None = None
    file: Any = None

    def read(self, path: Path, key: str, where: str) -> np.ndarray:
        """``key`` of an HDF5 file, or a ``.npy`` file (no key)."""
        try:
            return self._hdf5(path)[key][()] if key else np.load(path, allow_pickle=False)
        except KeyError:
            raise RecordError(where, "no such array", f"{path}: no array {key!r} in it; store it again") from None
        except (OSError, ValueError) as error:
            reason = str(error).split("\n", 1)[0]
            raise RecordError(
                where,
                "array not readable",
                f"{path}: not readable ({reason}); set 'root' to the folder paths count from",
            ) from error

    def _hdf5(self, path: Path) -> Any:
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{path}: HDF5 files need h5py: pip install 'ttt-speech[hdf5]'") from error
        if self.path != path:
            if self.file is not None:
                self.file.close()
            self.path, self.file = None, None
            self.file, self.path = h5py.File(path, "r"), path
        return self.file


@dataclass(frozen=True)
class _Stored(Converter):
    root: str = ""  # folder that relative paths count from; empty: the working folder
    task: str = "continuation"  # task of the examples
    prompt_share: Annotated[float, Range(gt=0, lt=1)] = 0.4  # of the recording's frames
    min_duration_s: NonNegativeFloat = 0.0  # shorter recordings are left out, and counted
    max_duration_s: NonNegativeFloat = 0.0  # longer ones likewise; 0: no limit
    num_codes: NonNegativeInt = 0  # size of a codebook, to be checked; 0: not

    makes: ClassVar[str] = "examples"
    arrays: ClassVar[_Arrays]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", _Arrays())
        check_limits(self.min_duration_s, self.max_duration_s)

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a line (``.jsonl``, ``.jsonl.gz``)."""
        return raw_records(path)

    def _check_duration(self, duration_s: float, uid: str, where: str) -> None:
        check_duration(duration_s, self.min_duration_s, self.max_duration_s, uid, where)

    def _example(self, uid: str, codes: np.ndarray, where: str, **meta: Any) -> dict[str, Any]:
        if codes.ndim != 2 or not codes.size:
            raise RecordError(
                where, "not codes", f"{uid!r}: expected an array [frames, codebooks], got shape {list(codes.shape)}"
            )
        whole = codes.astype(np.int64)
        if not np.array_equal(whole, codes) or whole.min() < 0:
            raise RecordError(
                where, "not codes", f"{uid!r}: the array does not hold whole numbers >= 0; is it mel energies?"
            )
        if self.num_codes and whole.max() >= self.num_codes:
            raise RecordError(
                where, "code out of range",
                f"{uid!r}: code {whole.max()} is outside the codebook of {self.num_codes}; set num_codes or drop the row",
            )  # fmt: skip
        if len(whole) < 2:
            raise RecordError(
                where, "one frame", f"{uid!r}: one frame cannot be cut into prompt and answer; drop the row"
            )
        cut = min(max(1, int(self.prompt_share * len(whole))), len(whole) - 1)
        turns = [
            ("user", [audio(whole[:cut].astype(np.int32), "user")]),
            ("assistant", [audio(whole[cut:].astype(np.int32), "last")]),
        ]
        return record(uid, turns, self.task, **meta)


@CONVERTER.register("lhotse_codes")
@dataclass(frozen=True)
class LhotseCodes(_Stored):
    """lhotse cuts whose stored features are codes (storage numpy_hdf5 or numpy_files), read as plain JSON, without lhotse.

    A cut that is a stretch of its features gets those frames only.
    """

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """One MonoCut with features."""
        cut = mapping(where, row)
        uid = str(cut.get("id", ""))
        features = cut.get("features")
        if cut.get("type", "MonoCut") != "MonoCut" or not uid or not isinstance(features, Mapping):
            raise RecordError(
                where,
                "no stored features",
                f"cut {uid!r}: expected a MonoCut with 'features'; compute and store its codes",
            )
        start_s, duration_s = float(cut.get("start", 0.0)), float(cut["duration"])
        self._check_duration(duration_s, uid, where)
        kind, at, key = (str(features.get(k, "")) for k in ("storage_type", "storage_path", "storage_key"))
        path = Path(self.root) / at
        if kind == "numpy_hdf5":
            codes = self.arrays.read(path, key, where)
        elif kind == "numpy_files":
            codes = self.arrays.read(path / key, "", where)
        else:
            raise RecordError(
                where, "unknown storage", f"cut {uid!r}: storage {kind!r}; store codes as numpy_hdf5 or numpy_files (lilcom "
                "is for real numbers)",
            )  # fmt: skip
        shift_s = float(features["frame_shift"])
        first = round((start_s - float(features.get("start", 0.0))) / shift_s)
        last = first + round(duration_s / shift_s)
        if first < 0 or last <= first or last > len(codes) + 1:  # a cut's last frame may be half a frame too many
            raise RecordError(
                where, "outside its features", f"cut {uid!r} lies outside its stored features; cut it anew"
            )
        said = [s for s in cut.get("supervisions") or [] if isinstance(s, Mapping)]
        first_said: Mapping[str, Any] = said[0] if said else {}
        return self._example(
            uid, codes[first:last], where, speaker=first_said.get("speaker"), text=first_said.get("text"),
            frame_rate_hz=round(1.0 / shift_s, 6),
        )  # fmt: skip

    def sample(self, folder: Path) -> Path:
        """A cut of one second, and another of its second half; codes in a ``.npy`` file."""
        codes = np.arange(200).reshape(50, 4) % 64
        np.save(folder / "codes.npy", codes.astype(np.int16))
        features = {
            "type": "encodec", "num_frames": 50, "num_features": 4, "frame_shift": 0.02, "sampling_rate": 32000, "start": 0.0,
            "duration": 1.0, "storage_type": "numpy_files", "storage_path": str(folder), "storage_key": "codes.npy", "channels": 0,
        }  # fmt: skip
        cuts = [
            {"id": f"r-{i}", "start": start, "duration": 1.0 - start, "channel": 0, "type": "MonoCut", "features": features,
             "supervisions": [{"id": "s", "start": 0.0, "duration": 1.0 - start, "speaker": "ann"}]}
            for i, start in enumerate((0.0, 0.5))
        ]  # fmt: skip
        return write_json(folder, "cuts.jsonl", cuts)


@CONVERTER.register("codes")
@dataclass(frozen=True)
class Codes(_Stored):
    """JSONL lines ``{"id", "codes": "a.npy" | "a.h5#key", "duration", "num_frames"}``; arrays [frames, codebooks].

    ``speaker`` and ``text`` are kept where they are given.
    """

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """One line."""
        line = mapping(where, row)
        uid, at = str(line.get("id", "")), line.get("codes")
        if not uid or not isinstance(at, str) or not at:
            raise RecordError(
                where, "no codes", "expected 'id' and 'codes' (a .npy file, or FILE.h5#KEY); mend or drop the line"
            )
        if line.get("duration") is not None:
            self._check_duration(float(line["duration"]), uid, where)
        elif self.min_duration_s or self.max_duration_s:
            raise RecordError(where, "no duration", f"{uid!r} has no 'duration'; add it, or set no limits of duration")
        path, _, key = at.partition("#")
        codes = self.arrays.read(Path(self.root) / path, key, where)
        if line.get("num_frames") not in (None, len(codes)):
            raise RecordError(
                where,
                "other number of frames",
                f"{uid!r}: {len(codes)} frames in {path}, the line says {line['num_frames']}",
            )
        return self._example(uid, codes, where, speaker=line.get("speaker"), text=line.get("text"))

    def sample(self, folder: Path) -> Path:
        """Two recordings of a few frames."""
        lines = []
        for i in range(2):
            np.save(folder / f"{i}.npy", np.full((5 + i, 4), i, dtype=np.int16))
            lines.append({"id": f"r{i}", "codes": str(folder / f"{i}.npy"), "duration": 0.1 + i, "num_frames": 5 + i})
        return write_json(folder, "codes.jsonl", lines)
