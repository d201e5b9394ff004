"""The files of a database: whatever is cut off or damaged, what is whole stays, and nothing is thrown away."""

import itertools
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwpq_tvm.schedules.record_file import RECORDS_FILE, WORKLOADS_FILE, read_lines
from hwpq_tvm.tuning import record_files
from tests.tuning.databases import make


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole") / "db", [3e-4, None])


def contents(folder: Path) -> tuple[list, list]:
    found = read_lines(folder)
    return found.workloads, found.records


def test_a_record_file_may_be_cut_off_anywhere(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands would take half a minute
    data = (whole / RECORDS_FILE).read_bytes()
    workloads, records = contents(whole)
    shutil.copy(whole / WORKLOADS_FILE, tmp_path)
    for end in range(len(data) + 1):
        for leftover in tmp_path.glob("*.torn"):
            leftover.unlink()
        (tmp_path / RECORDS_FILE).write_bytes(data[:end])
        _, notes = record_files.repair(tmp_path)
        # A line that lacks but its end is whole.
        count = data[:end].count(b"\n") + (data[end : end + 1] == b"\n")
        assert contents(tmp_path) == (workloads, records[:count])
        after = (tmp_path / RECORDS_FILE).read_bytes()
        assert after.count(b"\n") == count and (not after or after.endswith(b"\n"))
        torn = data[:end].rpartition(b"\n")[2] if data[end : end + 1] != b"\n" else b""
        kept = tmp_path / f"{RECORDS_FILE}.torn"
        assert (kept.read_bytes() if kept.exists() else b"") == (torn + b"\n" if torn else b"")
        assert bool(notes) == bool(torn)
        # What is appended next is a line of its own.
        record_files.append(tmp_path / RECORDS_FILE, records[0])
        assert contents(tmp_path)[1] == [*records[:count], records[0]]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damage_anywhere_costs_its_lines_only(whole, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    lines = (whole / RECORDS_FILE).read_bytes().splitlines(keepends=True)
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[number]) - 2))
    damage = data.draw(st.binary(min_size=1, max_size=5).filter(lambda each: b"\n" not in each and each.strip()))
    lines[number] = lines[number][:place] + b"\0" + damage
    lines[number] += b"\n"
    shutil.copy(whole / WORKLOADS_FILE, folder)
    (folder / RECORDS_FILE).write_bytes(b"".join(lines))
    _, notes = record_files.repair(folder)
    records = contents(whole)[1]
    assert contents(folder)[1] == records[:number] + records[number + 1 :]
    assert (folder / f"{RECORDS_FILE}.torn").read_bytes() == lines[number]
    assert "1 line was damaged" in notes[0]


def test_records_go_with_their_workload(whole, tmp_path):
    shutil.copy(whole / RECORDS_FILE, tmp_path)
    (tmp_path / WORKLOADS_FILE).write_bytes((whole / WORKLOADS_FILE).read_bytes()[:100])
    _, notes = record_files.repair(tmp_path)
    assert contents(tmp_path) == ([], [])
    assert len(notes) == 2
    assert (tmp_path / f"{RECORDS_FILE}.torn").read_bytes() == (whole / RECORDS_FILE).read_bytes()


def test_what_cannot_be_written_leaves_no_trace(whole, tmp_path):
    """The disk is full: here, the file may not grow beyond a limit."""
    path = tmp_path / RECORDS_FILE
    shutil.copy(whole / RECORDS_FILE, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OSError):
            record_files.append(path, ["a line that is longer than what is left"])
        with pytest.raises(OSError):
            record_files.replace(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_a_killed_process_loses_nothing_that_was_appended(tmp_path):
    path = tmp_path / RECORDS_FILE
    said, tell = os.pipe()
    if (child := os.fork()) == 0:
        try:
            for number in itertools.count():
                record_files.append(path, [number, "x" * 3000])
                os.write(tell, b"%d\n" % number)
        finally:
            os._exit(1)
    os.close(tell)
    with os.fdopen(said) as pipe:
        numbers = [int(pipe.readline()) for _ in range(20)]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        numbers += [int(line) for line in pipe]
    written = [json.loads(line)[0] for line in path.read_bytes().splitlines()]
    # One more may have been written than could be said.
    assert written in (numbers, [*numbers, len(numbers)])
