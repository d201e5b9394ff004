"""Times of units: one for every kernel, of one kind for all."""

from functools import partial

import pytest

from hwpq_tvm.choose import kernel_times as times
from hwpq_tvm.choose.units import CANDIDATES, find_units
from hwpq_tvm.config import HWPQConfig
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.schedules.records import TuningRecords
from hwpq_tvm.targets import resolve_target
from tests.relax_passes.models import ENTRIES, TinyLM, UntiedLM

RUNS = {"q": 1.0, "k": 1.0, "odd": 2.0, "embed": 1.0, "head": 1.0}


def units_of(module, target):
    plan = partial(make_plan, module, ENTRIES, calibrated=True, target=target)
    base = HWPQConfig(group_policy="pad")
    return find_units({each.name: plan(config=each.config(base)) for each in CANDIDATES}, RUNS)


def found(module, target, **options):
    units = units_of(module, target)
    return units, times.kernel_times(units, target, TuningRecords.empty(), progress=False, **options)


@pytest.mark.parametrize("tokens", [1, 3])
def test_kernels_are_measured_where_they_run(tokens):
    units, result = found(TinyLM, resolve_target("cpu", threads=1), tokens=tokens, repeat=2)
    assert (result.source, result.absolute) == ("measured here", True)
    for unit in units:
        assert set(result.seconds[unit.name]) == set(unit.options)
        assert all(0 < seconds < 0.1 for seconds in result.seconds[unit.name].values())


def test_tables_of_which_rows_are_read_take_no_time():
    units, result = found(UntiedLM, resolve_target("cpu", threads=1), repeat=1)
    (table,) = [unit for unit in units if unit.weights == ("embed",)]
    assert set(result.seconds[table.name].values()) == {0}


def test_times_of_gpus_are_predicted():
    units, result = found(TinyLM, resolve_target("cuda:sm_80"))
    assert result.source.startswith("predicted for ")
    assert result.absolute
    assert all(seconds > 0 for unit in units for seconds in result.seconds[unit.name].values())


def test_times_of_cpus_whose_code_does_not_run_here_are_in_proportion_to_bytes(monkeypatch):
    monkeypatch.setattr(times, "missing_features", lambda features: ("something",))
    units, result = found(TinyLM, resolve_target("cpu", threads=1))
    assert not result.absolute
    for unit in units:
        assert result.seconds[unit.name] == {each: unit.runs * unit.nbytes(each) for each in unit.options}
