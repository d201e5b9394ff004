"""The measured bandwidth: of memory, not of a cache, and what is known of the caches."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from hwpq_tvm import bandwidth

L3 = 105 * 2**20


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores in two sockets, each of which has an L3 of its own; this process may run on any."""
    for cpu in range(4):
        shared = "0-1" if cpu < 2 else "2-3"
        caches = ((1, "48K", cpu), (1, "32K", cpu), (2, "2M", cpu), (3, f"{L3 // 2**10}K", shared))
        for index, values in enumerate(caches):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in zip(("level", "size", "shared_cpu_list"), values, strict=True):
                (folder / name).write_text(f"{value}\n")
    monkeypatch.setattr(bandwidth, "_CPUS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    return tmp_path


def test_the_last_level_is_what_all_cores_reach(cpus, monkeypatch):
    assert bandwidth.last_level_cache() == 2 * L3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 0})
    assert bandwidth.last_level_cache() == L3
    for name in ("cpu0", "cpu1"):
        (cpus / name / "cache" / "index3" / "shared_cpu_list").unlink()
    assert bandwidth.last_level_cache() == 2 * 2**21
    monkeypatch.setattr(bandwidth, "_CPUS", cpus / "none")
    assert bandwidth.last_level_cache() is None


@pytest.mark.parametrize(
    ("free", "expected"), [(2**40, 8 * L3), (2**28, 2**26), (2**28 - 1, 2**25), (3 * 2**28, 2**27), (2**10, 2**20)]
)
def test_short_memory_leaves_few_sizes(cpus, monkeypatch, free, expected):
    monkeypatch.setattr(bandwidth, "available_memory", lambda: free)
    assert bandwidth.uncached_bytes() == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bandwidth_is_the_bytes_by_the_seconds_of_the_fastest_pass(threads, monkeypatch):
    size, clock, asked = 2**22 + 4, SimpleNamespace(now=100.0), []

    def compiled(threads, streams, length, ahead):
        def read(shares, combined):
            assert tuple(shares.shape) == (threads, streams, length)
            assert combined.shape[0] == threads
            asked.append((threads, streams, length, ahead))
            # The second pass of each way is the fastest, and of these the one with 16 streams that asks for nothing.
            clock.now += (0.25 if (streams, ahead) == (16, 0) else 0.5) * (1 if asked.count(asked[-1]) == 2 else 4)

        return read

    monkeypatch.setattr(bandwidth, "_compiled", compiled)
    monkeypatch.setattr(bandwidth, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(bandwidth, "uncached_bytes", lambda: size)
    monkeypatch.setattr(bandwidth, "use_threads", lambda count: asked.append(count))
    measured = bandwidth.stream_bandwidth(threads, repeat=3)
    assert asked.pop(0) == threads
    assert len(asked) == 3 * len(set(asked)) == 3 * len(bandwidth._WAYS)
    for count, streams, length, _ in asked:
        # All but a step of each stream.
        assert size - 256 * threads * streams < 4 * count * streams * length <= size
    assert measured == 4 * threads * 16 * asked[-1][2] / 0.25


def test_this_machine_reads(monkeypatch):
    monkeypatch.setattr(bandwidth, "uncached_bytes", lambda: 2**20)
    assert bandwidth.stream_bandwidth(1, repeat=1) > 0
