"""Tuning for a GPU that is not there: predicted times, and who may ask for them."""

from dataclasses import replace
from math import inf

import pytest

from hwpq_tvm.errors import ConfigError, TargetError
from hwpq_tvm.gpu import Driver
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cuda.devices import reference_device
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.space import best
from hwpq_tvm.schedules.cuda.work import Linear
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning import device_info
from hwpq_tvm.tuning.database import Database
from hwpq_tvm.tuning.logs import find_records
from hwpq_tvm.tuning.predict import check_device, predict_points, predicted_device

SM80 = resolve_target("cuda:sm_80")


def workload(M, name="mma_sparse24_int8", N=2048, K=2048, group_size=None):
    return LinearWorkload(name, "int8", group_size, M, N, K)


@pytest.mark.parametrize("M", [1, 16, 256])
@pytest.mark.parametrize("group_size", [None, 64])
def test_the_best_of_the_whole_space_is_no_slower_than_the_default(M, group_size):
    each = workload(M, group_size=group_size)
    space = registry.space(each, SM80)
    times = predict_points(each, SM80, space)
    assert len(times) == len(space)
    assert 1e-6 < min(times) <= times[0] < inf
    default = best(Linear(each.weight_format, each.N, each.K, group_size), reference_device(SM80), M)
    assert times[0] == pytest.approx(default.prediction.microseconds * 1e-6)
    registry.schedule_point(each, SM80, space[times.index(min(times))])


def test_a_point_that_does_not_fit_takes_forever():
    large = MmaParameters(8, 4, 256, stages=8, steps_per_stage=8)
    found = predict_points(workload(256), SM80, [large, registry.space(workload(256), SM80)[0]])
    assert found[0] == inf
    assert found[1] < 1e-4


def test_the_device_is_marked_as_predicted():
    info = predicted_device(SM80)
    assert info.name == "A100 SXM 40GB"
    assert not info.measured
    assert info.slug.endswith("-predicted")
    assert info.slug.startswith("sm_80")
    assert type(info).from_json(info.to_json()) == info


def test_without_a_gpu_nothing_is_tuned_for_one_unless_predictions_are_asked_for(monkeypatch):
    monkeypatch.setattr(device_info, "find_gpus", lambda: Driver(None, (), "no driver of NVIDIA's was found"))
    with pytest.raises(TargetError, match=r"no driver of NVIDIA's was found.*--predict.*measured ones always win"):
        check_device(SM80, "local", predict=False)
    check_device(SM80, "local", predict=True)
    check_device(SM80, "rpc://127.0.0.1:9190/a100", predict=False)
    check_device(resolve_target("cpu"), "local", predict=False)
    with pytest.raises(TargetError, match="predicted for GPUs only"):
        check_device(resolve_target("cpu"), "local", predict=True)


def test_predicted_records_are_found_for_the_target_and_lose_to_measured_ones(tmp_path):
    each = workload(16)
    default, other = registry.space(each, SM80)[:2]
    info = predicted_device(SM80)
    with Database(tmp_path / info.slug, info, SM80, resume=False) as database:
        database.commit(each, default, predict_points(each, SM80, [default]), Evidence.PREDICTED)
    records = find_records(SM80, tmp_path)
    assert records.best(each).parameters == default
    assert records.best(each).evidence == Evidence.PREDICTED
    real = replace(info, name="NVIDIA A100-SXM4-40GB", measured=True)
    with Database(tmp_path / real.slug, real, SM80, resume=False) as database:
        database.commit(each, other, [1.0], Evidence.MEASURED)
    assert find_records(SM80, tmp_path).best(each).parameters == other
    with pytest.raises(ConfigError, match="nothing there fits the target"):
        find_records(resolve_target("cuda:sm_86"), tmp_path)
