"""Which records a build finds: those that ship, those of the user's folder, and never those of another device."""

from dataclasses import replace

import pytest

from hwpq_tvm.errors import ConfigError
from hwpq_tvm.schedules.records import TuningRecords, read_contents
from hwpq_tvm.schedules.version import KERNELS_VERSION
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning import logs
from hwpq_tvm.tuning.device_file import DEVICE, read_device, write_device
from hwpq_tvm.tuning.logs import SHIPPED, databases_in, find_records
from tests.tuning.databases import INFO, POINTS, TARGET, WORKLOAD, make, with_tokens

OTHER = replace(INFO, name="Another CPU", mcpu="znver4")


@pytest.fixture(autouse=True)
def shipped(tmp_path, monkeypatch):
    """A folder that stands for the one in the package."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(logs, "SHIPPED", folder)
    return folder


def test_shipped_records_of_the_device_are_found(shipped):
    make(shipped / INFO.slug, [3e-4, 2e-4])
    make(shipped / OTHER.slug, [1e-4], info=OTHER)
    records = find_records(TARGET)
    assert records.best(WORKLOAD).parameters == POINTS[1]
    assert records.best(WORKLOAD).source == INFO.slug
    assert records.notes == []
    assert len(find_records(resolve_target("cpu:aarch64"))) == 0


def test_the_users_records_come_first(shipped, tmp_path):
    make(shipped / INFO.slug, [1e-4])
    make(shipped / INFO.slug, [1e-4], workload=with_tokens(64))
    mine = tmp_path / "work" / "mine"
    make(mine, [None, 2e-4])
    make(mine, [5e-4], workload=with_tokens(16))
    for folder in (mine, mine.parent):
        records = find_records(TARGET, folder)
        assert records.best(WORKLOAD).parameters == POINTS[1]
        assert records.best(WORKLOAD).source == "mine"
        assert records.best(with_tokens(16)).median == 5e-4
        assert records.best(with_tokens(64)).source == INFO.slug
        assert not records.notes


def test_shipped_records_of_this_very_device_are_not_left_out_without_a_word(shipped):
    for name, version in (("old", "0.26.0"), ("unreadable", None)):
        make(shipped / name, [1e-4])
        if version is None:
            (shipped / name / DEVICE).write_text("{")
        else:
            write_device(shipped / name, replace(INFO, tvm_version=version), [])
    make(shipped / "other", [1e-4], info=OTHER)
    records = find_records(TARGET)
    assert len(records) == 0
    assert len(records.notes) == 2
    assert "they are of TVM 0.26.0, and this is" in records.notes[0]
    assert "can't be read" in records.notes[1]


def test_records_of_several_devices_are_not_mixed(shipped, tmp_path):
    for name, tokens, seconds, cache in (
        ("large", 4, 2e-4, 2**25),
        ("small", 4, 1e-4, 2**23),
        ("small", 16, 2e-4, 2**23),
    ):
        make(tmp_path / name, [seconds], info=replace(INFO, cache_bytes=cache), workload=with_tokens(tokens))
    records = find_records(TARGET, tmp_path)
    assert records.best(WORKLOAD).source == "large"
    assert records.best(with_tokens(16)).source == "small"
    (note,) = records.notes
    assert "several devices fit" in note and "-32mib" in note and "-8mib" in note


def test_a_folder_of_databases_is_searched_and_the_rest_told(tmp_path):
    for name, times, info in (("a", [3e-4], INFO), ("b", [None, 2e-4], INFO), ("c", [1e-5], OTHER)):
        make(tmp_path / "all" / name, times, info=info)
    make(tmp_path / "all" / "d", [1e-5])
    (tmp_path / "all" / "d" / DEVICE).unlink()
    (tmp_path / "all" / "no database").mkdir()
    (tmp_path / "all" / "notes.txt").write_text("by hand")
    assert [each.name for each in databases_in(tmp_path / "all")] == ["a", "b", "c", "d"]
    records = find_records(TARGET, tmp_path / "all")
    assert len(records) == 2
    assert records.best(WORKLOAD).source == "a"
    assert len(records.notes) == 2
    assert "c was ignored: they are of znver4, and the target is x86-64-v4" in records.notes[0]
    assert "d was ignored" in records.notes[1] and "missing" in records.notes[1]


@pytest.mark.parametrize("what", ["nothing there", "an empty folder"])
def test_a_folder_without_databases_is_an_error(tmp_path, what):
    folder = tmp_path / "given"
    if what == "an empty folder":
        folder.mkdir()
    with pytest.raises(ConfigError, match="no database is there"):
        find_records(TARGET, folder)


def test_a_folder_that_does_not_fit_is_an_error_that_says_why(shipped, tmp_path):
    make(shipped / INFO.slug, [3e-4])
    make(tmp_path / "given", [1e-4], info=OTHER)
    reason = r"nothing there fits the target \(given: they are of znver4, and the target is x86-64-v4\)"
    with pytest.raises(ConfigError, match=reason):
        find_records(TARGET, tmp_path / "given")


def test_records_of_other_threads_are_an_error_that_says_so(tmp_path):
    make(tmp_path / "given", [1e-4])
    with pytest.raises(ConfigError, match=r"measured with 2 threads, where the target has 5"):
        find_records(resolve_target("cpu:x86-64-v4-vnni", threads=5), tmp_path / "given")


def test_a_folder_of_failures_does_not_fit(tmp_path):
    make(tmp_path / "given", [None, None])
    with pytest.raises(ConfigError, match=r"nothing there fits the target \(every kernel that was tried has failed"):
        find_records(TARGET, tmp_path / "given")


def test_what_ships_can_be_read():
    for folder in databases_in(SHIPPED):
        info, conditions = read_device(folder)
        assert info.slug == folder.name and bool(conditions) == info.measured
        contents = read_contents(folder)
        # Records of older kernels may stay until the device is tuned again.
        assert all("of version" in reason for reason in contents.ignored)
        current = [record for record in contents.linears if record.version == KERNELS_VERSION]
        word = f"cuda:{info.architecture}" if info.kind == "gpu" else f"cpu:{info.mcpu}"
        for threads in {record.threads for record in current}:
            records = TuningRecords.load(folder, resolve_target(word, threads=threads or None))
            for record in current:
                assert record.threads != threads or record.failed or records.best(record.workload) is not None
            assert all("threads, where" in note or "of version" in note for note in records.notes)
