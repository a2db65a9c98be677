"""References to sounds: what each names is read exactly, without unpacking, and what is broken is refused in one line."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ttt.audio.recordings import Recordings
from ttt.audio.sound import Sound, opened
from ttt.audio.wav import read
from ttt.errors import DataError

RATE = 8000
SOUND = (0.3 * np.sin(np.arange(3 * RATE) / 7)).astype(np.float32)


def encoded(kind="FLAC", seconds=(0.0, 3.0), channels=1):
    part = SOUND[round(seconds[0] * RATE) : round(seconds[1] * RATE)]
    out = io.BytesIO()
    soundfile.write(out, np.stack([part] * channels, axis=1), RATE, format=kind, subtype="OPUS" if kind == "OGG" else None)
    return out.getvalue()


def make_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(path) as tar:
        return [(m.offset_data, m.size) for m in tar.getmembers()]


@pytest.mark.parametrize("file", ["a.wav", "/x y/ä #1.tar", "a#t=1.wav", "a#row=1,x#b.parquet", "a\nb.tar", "50%,2.tar"])
@pytest.mark.parametrize("inside", [{}, {"member": (512, 7)}, {"cell": (0, "my, column")}])
@pytest.mark.parametrize("part", [(0.0, None), (0.0, 1.5), (2.000001, None), (12345 / 44100, 54321 / 44100)])
def test_a_name_means_the_same_sound_again(file, inside, part):
    sound = Sound(Path(file), **inside, start_s=part[0], stop_s=part[1])
    again = Sound.of(Path(str(sound)))
    assert str(again) == str(sound) and (again.file, again.member, again.cell) == (sound.file, sound.member, sound.cell)
    assert again.stop_s == (part[1] and pytest.approx(part[1], abs=1e-6)) and again.start_s == pytest.approx(part[0], abs=1e-6)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_stretch_is_read_as_of_the_whole(tmp_path, kind):
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(kind))
    whole = read(path).samples
    for start, stop in ((0.0, 0.5), (1.2345, 2.0), (2.5, None)):
        found = read(Sound(path, start_s=start, stop_s=stop)).samples
        expected = whole[round(start * RATE) : len(whole) if stop is None else round(stop * RATE)]
        # opus decodes a stretch not quite as it decodes the whole
        assert found.shape == expected.shape
        assert np.allclose(found, expected, atol=5e-3 if kind == "OGG" else 1e-6)


def test_a_member_of_a_tar(tmp_path):
    long_name = "folder/" + "x" * 150 + ".flac"
    places = make_tar(tmp_path / "a.tar", [("a.flac", encoded()), ("b.txt", b"words"), (long_name, encoded(seconds=(1, 2)))])
    assert np.array_equal(read(f"{tmp_path}/a.tar#at={places[0][0]},{places[0][1]}").samples, read_whole())
    assert np.allclose(read(f"{tmp_path}/a.tar#at={places[2][0]},{places[2][1]}#t=0.25,0.5").samples, SOUND[10000:12000], atol=1e-4)
    with pytest.raises(DataError, match=f"#at={places[1][0]},5: not a readable sound file .Format not recognised.*make or"):
        read(f"{tmp_path}/a.tar#at={places[1][0]},5")
    for wrong in (f"{places[0][0]},7", f"{places[0][0] + 512},{places[0][1]}", "0,3"):
        with pytest.raises(DataError, match="no member of .* bytes begins there: the tar has changed"):
            read(f"{tmp_path}/a.tar#at={wrong}")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: places[2][0] + 9])
    with pytest.raises(DataError, match="the tar ends within its member 'folder/xxx"):
        read(f"{tmp_path}/a.tar#at={places[2][0]},{places[2][1]}")


def read_whole():
    return soundfile.read(io.BytesIO(encoded()), dtype="float32")[0]


def tables(folder, values, groups=10):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"audio": values, "n": list(range(len(values)))})
    pq.write_table(table, folder / "t.parquet", row_group_size=groups)
    with pa.OSFile(str(folder / "t.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=groups)
    return [folder / "t.parquet", folder / "t.arrow"]


def test_a_row_of_a_table(tmp_path):
    sounds = [encoded(seconds=(0, 0.1 + i / 100)) for i in range(45)]
    (tmp_path / "beside.flac").write_bytes(sounds[7])
    values = [{"bytes": s, "path": None} for s in sounds]
    values[7] = {"bytes": None, "path": "beside.flac"}
    for path in tables(tmp_path, values, groups=40):
        for row in (3, 4, 17, 35, 44, 7, 0):  # forward within a group, into the next one, and back
            assert len(read(f"{path}#row={row},audio").samples) == round((0.1 + row / 100) * RATE), (path, row)
        assert len(read(f"{path}#row=44,audio#t=0.25,0.5").samples) == 2000


def test_cells_that_hold_no_sound(tmp_path):
    values = [{"bytes": b"junk" * 99, "path": "a.mp3"}, {"bytes": None, "path": "gone.mp3"}, {"bytes": b"", "path": None}, None]
    for path in tables(tmp_path, values):
        for row, words in (
            (0, "not a readable sound file .Format not recognised"), (1, "no bytes, and its path gone.mp3 is no file here"),
            (2, "expected the bytes of a sound file .*, got nothing"), (3, "got nothing"), (4, "the table has 4 rows"),
        ):  # fmt: skip
            with pytest.raises(DataError, match=f"{path.name}#row={row}.*{words}"):
                read(f"{path}#row={row},audio")
        with pytest.raises(DataError, match="got int"):
            read(f"{path}#row=1,n")
        with pytest.raises(DataError, match="no column 'sound'; columns: audio, n"):
            read(f"{path}#row=0,sound")
        path.write_bytes(path.read_bytes()[:50] if path.suffix == ".parquet" else b"junk")
        with pytest.raises(DataError, match=r"not readable as (parquet|Arrow)"):
            read(f"{path}#row=0,audio")


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_a_file_that_was_cut_off_is_not_read_short(tmp_path, kind):
    content = encoded(kind)
    (tmp_path / "a").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"/a: (not a readable sound file .*lost sync|.* declared, .* are there)"):
        read(tmp_path / "a")


def test_mp3_that_cannot_be_decoded(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"\xff\xfb\x90\x64" + bytes(3000))
    with pytest.raises(DataError, match="a.mp3: not a readable sound file .nothing in it can be decoded.: make or convert"):
        read(tmp_path / "a.mp3")


def test_conversions_are_counted(tmp_path):
    places = make_tar(tmp_path / "a.tar", [("a.flac", encoded(channels=2))])
    recordings = Recordings(16000)
    assert recordings.read(f"{tmp_path}/a.tar#at={places[0][0]},{places[0][1]}").rate_hz == 16000
    assert recordings.summary() == "of 1 recordings 1 were resampled from 8000 Hz to 16000 Hz, 1 mixed down to one channel"
    with opened(f"{tmp_path}/a.tar#at={places[0][0]},{places[0][1]}#t=1,2") as file:
        assert file.frames == 3 * RATE, "the whole, whatever the stretch"
