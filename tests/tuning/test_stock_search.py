"""The search with MetaSchedule's stock rules: right schedules, each once, for the functions that models hold."""

import base64
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import te, topi

from hwpq_tvm.config import HWPQConfig
from hwpq_tvm.importers import import_model
from hwpq_tvm.relax_passes.apply_schedules import ApplySchedules
from hwpq_tvm.relax_passes.compress_linears import CompressLinears
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.pipeline import optimise
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.records import TuningRecords
from hwpq_tvm.schedules.stock import DEFAULT, stock_module
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning import stock_search
from hwpq_tvm.tuning.builder import Built
from hwpq_tvm.tuning.database import Database
from hwpq_tvm.tuning.device_info import this_device
from hwpq_tvm.tuning.stock_search import MOST_TRIALS, StockSearch
from hwpq_tvm.tuning.stock_tasks import stock_tasks
from hwpq_tvm.tuning.stock_workload import StockPoint, StockWorkload
from tests.tiny_hf import tiny_gemma2

TARGET = resolve_target("cpu", threads=2)


class Compiler:
    """Builds in this process; what it is told to break fails."""

    def __init__(self, folder: Path, broken: str = "nothing") -> None:
        self.folder, self.broken, self.count = folder, broken, 0

    def build(self, candidates) -> list[Built]:
        return [self._build(candidate) for candidate in candidates]

    def _build(self, candidate) -> Built:
        if self.broken in candidate.workload.label:
            return Built(None, "it is broken", 0.0)
        self.count += 1
        library = self.folder / f"{self.count}.so"
        kernel = candidate.workload.schedule(TARGET, candidate.point)
        tvm.compile(stock_module(kernel), TARGET).export_library(str(library))
        return Built(library, None, 0.0)


@pytest.fixture(autouse=True)
def small_populations(monkeypatch):
    monkeypatch.setattr(stock_search, "_POPULATION", 12)
    monkeypatch.setattr(stock_search, "_GENERATIONS", 1)


def convolution() -> StockWorkload:
    x, w = te.placeholder((1, 4, 18, 18), name="x"), te.placeholder((8, 4, 3, 3), name="w")
    func = te.create_prim_func([x, w, topi.nn.conv2d(x, w, 1, 1, 1, data_layout="NCHW")])
    return StockWorkload.of(func, "convolution", 1, Path("reference.so"))


def test_schedules_are_right_and_proposed_once():
    workload = convolution()
    assert workload.label == "convolution 1 x 8 x 18 x 18"
    search = StockSearch(workload, TARGET)
    rng = np.random.default_rng()
    x, w = (rng.standard_normal(shape, np.float32) for shape, _ in workload.function.arguments[:2])
    results, seen = [], set()
    candidates = [search.default(), *search.propose(2), *search.propose(1)]
    assert len(candidates) == 4
    for number, candidate in enumerate(candidates):
        kernel = candidate.workload.schedule(TARGET, candidate.point)
        out = tvm.runtime.empty((1, 8, 18, 18), "float32")
        arguments = (tvm.runtime.tensor(x), tvm.runtime.tensor(w), out)
        tvm.compile(stock_module(kernel), TARGET)["main"](*arguments)
        results.append(out.numpy())
        seen.add(candidate.point)
        search.tell(candidate, None if number == 2 else 1e-3 / (1 + number))
    assert len(seen) == 4 and StockPoint.of(DEFAULT) in seen
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("ocuv,cijuv->oij", w, windows, dtype=np.float64)
    for result in results:
        np.testing.assert_allclose(result[0], expected, rtol=1e-4, atol=1e-4)
    # The search learned of them, and goes on with others.
    assert not seen & {candidate.point for candidate in search.propose(8)}
    # So does one that takes up what an earlier one found.
    again = StockSearch(workload, TARGET, tried=dict.fromkeys(seen, 1e-3))
    assert not seen & {candidate.point for candidate in again.propose(8)}


def test_a_search_ends():
    """A chain of elementwise operators has hardly any schedules."""
    x = te.placeholder((64, 1024), name="x")
    func = te.create_prim_func([x, te.compute(x.shape, lambda i, j: te.tanh(x[i, j]), name="y")])
    search = StockSearch(StockWorkload.of(func, "tanh", 1, Path("reference.so")), TARGET)
    rounds = []
    while not search.exhausted:
        rounds.append(search.propose(8))
        for candidate in rounds[-1]:
            search.tell(candidate, 1e-4)
        assert len(rounds) < MOST_TRIALS
    points = [candidate.point for proposed in rounds for candidate in proposed]
    assert 1 <= len(points) == len(set(points)) <= MOST_TRIALS
    assert search.propose(8) == []


@pytest.fixture(scope="module")
def compressed():
    """A tiny Gemma2 after compression: its soft-cap of the logits is a function that TVM makes."""
    config = HWPQConfig()
    imported = import_model(tiny_gemma2(vocab_size=40_000), max_seq_len=48)
    plan = make_plan(imported.module, imported.entries, config, calibrated=True, target=TARGET)
    return CompressLinears(plan, imported.entries)(imported.module), imported.entries


def test_functions_of_a_model_are_found_tuned_and_used(compressed, tmp_path):
    mod, entries = compressed
    (tmp_path / "libraries").mkdir()
    compiler = Compiler(tmp_path / "libraries")
    tasks = stock_tasks(mod, entries, TARGET, compiler, tmp_path / "references")
    assert tasks and all(task.workload.function.arguments[-1][0][-1] == 40_000 for task in tasks)
    (task,) = (each for each in tasks if "tanh" in each.workload.label)
    # Decoding runs it for each token of the answer; of a prompt the number of logits is not known.
    assert task.calls == 64 and task.layers == (task.workload.label.split()[0],)
    # Nothing in it names a file of the machine that tuned.
    assert b".py" not in base64.b64decode(task.workload.line)
    function = task.workload.function
    assert function.outputs == 1 and function.reference.parent == tmp_path / "references"
    x = np.random.default_rng().standard_normal(function.arguments[0][0], np.float32) * 40
    out = tvm.runtime.empty(function.arguments[1][0], "float32")
    tvm.runtime.load_module(str(function.reference))["main"](tvm.runtime.tensor(x), out)
    np.testing.assert_allclose(out.numpy(), 30 * np.tanh(x / 30), rtol=1e-4, atol=1e-5)

    (candidate,) = StockSearch(task.workload, TARGET).propose(1)
    folder = tmp_path / "database"
    with Database(folder, this_device(TARGET), TARGET, resume=False) as database:
        for point, seconds in ((StockPoint.of(DEFAULT), 2e-4), (candidate.point, 1e-4)):
            database.commit(task.workload, point, [seconds], Evidence.MEASURED)
    records = TuningRecords.load(folder, TARGET)
    schedules = ApplySchedules(TARGET, records)
    scheduled = schedules(optimise(mod))
    choice = schedules.choices[task.layers[0]]
    assert (choice.kernel, choice.schedule, choice.record) == ("generic", "tuned", "database")
    others = [choice for name, choice in schedules.choices.items() if name != task.layers[0]]
    assert not any(other.schedule == "tuned" for other in others)
    kernel = candidate.workload.schedule(TARGET, candidate.point)
    tvm.ir.assert_structural_equal(scheduled[task.layers[0]].body, kernel.body, map_free_vars=True)


def test_what_can_not_be_built_is_no_task(compressed, tmp_path):
    mod, entries = compressed
    compiler = Compiler(tmp_path, broken="tanh")
    tasks = stock_tasks(mod, entries, TARGET, compiler, tmp_path / "references")
    assert not any("tanh" in task.workload.label for task in tasks)
    assert stock_tasks(mod, entries, resolve_target("cuda:sm_80"), compiler, tmp_path) == []
