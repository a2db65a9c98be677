"""Threads beside other processes: what is set, and what is left as the user set it."""

import logging
import os

import pytest
import torch

from ttt.io import provenance, threads


def test_threads_sleep_unless_the_user_says_otherwise():
    environment: dict[str, str] = {}
    threads.sleep_while_waiting(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
    for name in environment:
        own = {name: "7"}
        threads.sleep_while_waiting(own)
        assert own == {name: "7"}


@pytest.mark.parametrize(
    "text, busy",
    [("0.1 0.1 0.1 1/100 5", 0), ("9 9 9 2/100 5", 1), ("9 9 9 15/100 5", 14), ("", 0), ("a b c d", 0), ("1 1 1 x/y 3", 0)],
)
def test_who_else_is_running(text, busy, tmp_path, monkeypatch):
    (tmp_path / "loadavg").write_text(text)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert threads.busy_with_others(4, tmp_path / "loadavg") == busy
    assert threads.busy_with_others(2, tmp_path / "loadavg") == round(busy / 2), "this process's share of the machine"
    assert threads.busy_with_others(4, tmp_path / "absent") == 0


@pytest.fixture
def eight(monkeypatch):
    """Eight processors, of which the test says how many are busy; -> the numbers of threads that were set."""
    chosen: list[int] = []
    monkeypatch.setattr(provenance, "usable_cpus", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return chosen


@pytest.mark.parametrize("asked, others, expected", [(0, 0, []), (0, 3, [5]), (0, 30, [1]), (6, 3, [6])])
def test_fewer_threads_where_others_work(asked, others, expected, eight, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(threads, "busy_with_others", lambda cpus: others)
    threads.choose_threads(asked)
    assert eight == expected
    said = bool(others and not asked)
    assert len(caplog.messages) == said
    if said:
        assert f"{expected[0]} threads here (run.threads=8 takes all)" in caplog.messages[0]


@pytest.mark.parametrize("asked, variable, expected", [(0, None, [5, 3]), (6, None, [6]), (0, "8", [])])
def test_a_resumed_run_has_the_threads_it_had(asked, variable, expected, eight, monkeypatch):
    """Where ttt chose their number: losses would differ in their last bits.  Not where the user did."""
    monkeypatch.setattr(threads, "_chosen_by_ttt", False)
    monkeypatch.setattr(threads, "busy_with_others", lambda cpus: 3)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    threads.choose_threads(asked)
    threads.keep_threads(3)
    assert eight == expected


def test_the_environment_wins(eight, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(threads, "busy_with_others", lambda cpus: 7)
    threads.choose_threads(0)
    assert eight == []


@pytest.mark.parametrize("text, least", [("100000 100000", 1), ("150000 100000", 2), ("max 100000", 0), ("x", 0), ("5 0", 0)])
def test_a_quota_of_a_container_counts(text, least, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu.max").write_text(text)
    assert provenance.usable_cpus(tmp_path / "cpu.max") == (least or 8)
