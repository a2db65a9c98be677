"""Files and folders are written whole or not at all, and no temporary stays behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ttt.io import atomic
from ttt.io.system_errors import is_disk_full


def names(folder):
    return sorted(p.name for p in folder.iterdir())


WRITERS = [
    (lambda p: atomic.write_text(p, "é\n"), "é\n".encode()),
    (lambda p: atomic.write_text(p, "x", sync=True), b"x"),
    (lambda p: atomic.write_bytes(p, b"\0\xff"), b"\0\xff"),
    (lambda p: atomic.write_json(p, {"a": (float("nan"),), "ü": 1}), '{\n "a": [\n  null\n ],\n "ü": 1\n}\n'.encode()),
    (lambda p: atomic.write_json_lines(p, iter([{"b": 1}, {"a": "é"}])), '{"b": 1}\n{"a": "é"}\n'.encode()),
    (lambda p: atomic.write_json_lines(p, [{"b": 1}], separators=(",", ":")), b'{"b":1}\n'),
    (lambda p: atomic.write_json_lines(p, []), b""),
]


@pytest.mark.parametrize(("write", "content"), WRITERS)
def test_a_file_is_written_and_replaced(tmp_path, write, content):
    path = tmp_path / "new" / "file"
    write(path)
    path.write_text("older")
    write(path)
    assert path.read_bytes() == content and names(path.parent) == ["file"]


def failing_records():
    yield {"a": 1}
    raise RuntimeError("the source failed")


FAILURES = [
    (lambda p: atomic.write_json_lines(p, failing_records()), RuntimeError),
    (lambda p: atomic.write_json_lines(p, [{"a": object()}]), TypeError),
    (lambda p: atomic.write_text(p, "\ud800"), UnicodeEncodeError),
]


@pytest.mark.parametrize(("write", "error"), FAILURES)
@pytest.mark.parametrize("before", ["", "older"])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, write, error, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)
    with pytest.raises(error):
        write(path)
    assert names(tmp_path) == (["file"] if before else []) and (not before or path.read_text() == before)


def test_two_writers_of_one_file_share_no_temporary(tmp_path):
    path = tmp_path / "file"
    with atomic.file_aside(path) as one, atomic.file_aside(path) as two:
        assert one != two and str(os.getpid()) in one.name
        one.write_text("1")
        two.write_text("2")
    assert path.read_text() == "1" and names(tmp_path) == ["file"]  # the last that ended


def test_a_name_of_255_bytes_has_room_for_a_temporary(tmp_path):
    path = tmp_path / ("日" * 85)
    atomic.write_text(path, "x")
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_takes_its_place_when_the_block_ends(tmp_path, before):
    path = tmp_path / "folder"
    if before:
        path.mkdir()
        (path / "old").write_text("")
    with atomic.folder_aside(path) as work:
        (work / "new").write_text("")
        assert path.exists() == before
    assert names(path) == ["new"] and names(tmp_path) == ["folder"]


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_that_failed_leaves_the_old_one(tmp_path, before):
    path = tmp_path / "folder"
    if before:
        path.mkdir()
        (path / "old").write_text("")
    with pytest.raises(RuntimeError), atomic.folder_aside(path) as work:
        (work / "new").write_text("")
        raise RuntimeError
    assert names(tmp_path) == (["folder"] if before else []) and (not before or names(path) == ["old"])


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    path, work = tmp_path / "folder", tmp_path / "work"
    path.mkdir()
    (path / "old").write_text("")
    with pytest.raises(FileNotFoundError):
        atomic.put_folder(work, path)  # `work` is not there
    assert names(tmp_path) == ["folder"] and names(path) == ["old"]


def test_json_of_numpy(tmp_path):
    import numpy as np

    atomic.write_json(tmp_path / "a.json", {"a": np.arange(2), "b": np.float32("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [0, 1], "b": None}


def test_a_full_disk_is_recognised_through_wrappers():
    assert is_disk_full(OSError(errno.ENOSPC, "x")) and is_disk_full(OSError(errno.EDQUOT, "x"))
    assert is_disk_full(RuntimeError('Io Error: IoError(Os { code: 28, message: "No space left on device" })'))
    assert not is_disk_full(OSError(errno.EACCES, "x"))


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftover(name, pid, kind="tmp", machine=None):
    return f".{name}.{machine or atomic.machine()}-{pid}-0123abcd.{kind}"


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path, dead):
    gone, stays = [leftover("a.json", dead), leftover("f", dead)], [
        leftover("b.json", os.getpid()), leftover("c.json", 1), leftover("d.json", dead, machine="0" * 8), "mine.tmp", ".x.tmp",
        f".x.{dead}-01.tmp",
    ]  # fmt: skip
    for name in [*gone, *stays]:
        (tmp_path / name).write_text("x")
    (tmp_path / gone[1]).unlink()
    (tmp_path / gone[1] / "deep").mkdir(parents=True)
    atomic.write_text(tmp_path / "a.json", "new")
    assert names(tmp_path) == sorted([*stays, "a.json"])


def test_a_killed_writer_leaves_nothing_for_long(tmp_path):
    code = "import sys, time; from ttt.io.atomic import file_aside\nwith file_aside(sys.argv[1]) as t:\n"
    code += "    t.write_text('half'); print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    atomic.remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 1  # it lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_one_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    atomic.put_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == ["new"]


def test_a_kill_between_the_renames_loses_no_folder(tmp_path, dead):
    (tmp_path / leftover("store", dead, "old")).mkdir()
    (tmp_path / leftover("store", dead, "old") / "old").write_text("")
    (tmp_path / leftover("store", dead)).mkdir()  # the new one, which was not there yet
    atomic.recover(tmp_path / "store")
    assert names(tmp_path) == ["store"] and names(tmp_path / "store") == ["old"]


def test_a_kill_after_the_renames_keeps_the_new_folder(tmp_path, dead):
    for name in ("store", leftover("store", dead, "old")):
        (tmp_path / name).mkdir()
    (tmp_path / "store" / "new").write_text("")
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["store"] and names(tmp_path / "store") == ["new"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_in_any_moment_leaves_the_old_or_the_new_folder(tmp_path, exchange):
    """A child replaces a folder again and again and is killed; there is always one whole folder of that name afterwards."""
    code = "import sys; from pathlib import Path; from ttt.io import atomic\n"
    code += "" if exchange else "atomic._exchange = lambda one, other: False\n"
    code += "print('ready', flush=True)\n"
    code += "while True:\n  with atomic.folder_aside(sys.argv[1]) as work:\n    (work / 'a').write_text('')\n"
    for round_ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "f")], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        atomic.recover(tmp_path / "f")
        atomic.remove_leftovers(tmp_path)
        assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["a"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("")
    (tmp_path / "link").symlink_to("real")
    with atomic.folder_aside(tmp_path / "link") as work:
        (work / "new").write_text("")
    assert (
        (tmp_path / "link").is_symlink() and names(tmp_path / "real") == ["new"] and names(tmp_path) == ["link", "real"]
    )
