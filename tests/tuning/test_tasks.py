"""What there is to tune in a model: each linear once, weighted by how often it runs."""

from types import SimpleNamespace

import pytest
import tvm

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import ConfigError
from hwpq_tvm.relax_passes.compress_linears import CompressLinears
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.usage import NEW_TOKENS
from hwpq_tvm.schedules.linear_workload import BUCKETS, LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning.tasks import extract_tasks, shape_tasks
from tests.relax_passes.models import ENTRIES, TinyLM, UntiedLM

TARGET = resolve_target("cpu:x86-64-v3", threads=2)
SHARE = 1 / len(BUCKETS)


def tasks(config=None, *, rivals=True, model=TinyLM):
    planned = make_plan(model, ENTRIES, config or HWPQConfig(), calibrated=True, target=TARGET)
    mod = tvm.transform.Sequential([CompressLinears(planned, ENTRIES)])(model)
    return {task.workload: task for task in extract_tasks(mod, ENTRIES, planned, TARGET, rivals=rivals)}


def test_each_linear_comes_once_for_each_number_of_tokens() -> None:
    found = tasks(rivals=False)
    shapes = {}
    for workload in found:
        shapes.setdefault((workload.weight_format, workload.N, workload.K), set()).add(workload.M)
    everywhere = {1, *BUCKETS}
    # q and k share an input, so they are one kernel of 24 + 16 rows (9 padded to blocks of 8).
    assert shapes == {
        ("sparse24_int8", 40, 16): everywhere,
        ("dense_int8", 16, 33): everywhere,
        ("dense_int8", 56, 16): everywhere,
    }


def test_a_decode_step_runs_for_each_new_token_and_a_prompt_falls_in_one_bucket() -> None:
    found = tasks(rivals=False)
    for workload, task in found.items():
        assert task.calls == (NEW_TOKENS if workload.M == 1 else SHARE)


def test_layers_are_named() -> None:
    found = tasks(rivals=False)
    names = {workload.weight_format + str(workload.N): task.layers for workload, task in found.items()}
    assert names == {"sparse24_int840": ("q", "k"), "dense_int816": ("odd",), "dense_int856": ("embed",)}


def test_rivals_are_the_same_linears_dense() -> None:
    with_rivals, without = tasks(), tasks(rivals=False)
    added = [task for workload, task in with_rivals.items() if workload not in without]
    assert {(task.workload.weight_format, task.workload.N, task.workload.K) for task in added} == {
        ("dense_int8", 40, 16)
    }
    labels = {workload.label: workload for workload in without}
    for task in added:
        other = labels[task.rival_of]
        assert other.M == task.workload.M
        assert task.calls == without[other].calls
    # What is dense for a reason has no rival, and rivals stand behind the tasks of the model.
    assert all(task.rival_of is None for task in without.values())
    assert [task.rival_of is None for task in with_rivals.values()] == [True] * len(without) + [False] * len(added)


def test_an_open_choice_has_a_rival_whatever_is_planned() -> None:
    config = HWPQConfig(default=LayerScheme(sparsity="auto"))
    formats = {(task.workload.weight_format, task.workload.N) for task in tasks(config).values()}
    assert {("sparse24_int8", 40), ("dense_int8", 40)} <= formats


@pytest.mark.parametrize(
    ("model", "overrides", "open_layers"),
    [
        (TinyLM, {}, {"q", "k"}),
        (TinyLM, {"k": LayerScheme()}, {"q"}),
        (UntiedLM, {"head": LayerScheme(sparsity="auto")}, {"q", "head"}),
    ],
)
def test_times_of_all_tasks_decide_every_open_choice(model, overrides, open_layers) -> None:
    config = HWPQConfig(default=LayerScheme(sparsity="auto"), overrides=overrides)
    tuned = tasks(config, model=model)

    class Records:
        def best(self, workload):
            record = SimpleNamespace(median=1.0, evidence=Evidence.CONFIRMED)
            return record if workload in tuned else None

    planned = make_plan(model, ENTRIES, config, calibrated=True, target=TARGET, records=Records())
    chosen = {layer.name: layer.chosen for layer in planned.linears if layer.chosen is not None}
    assert chosen.keys() == open_layers
    assert all(why.startswith("auto chose dense") for why in chosen.values())


def test_what_some_layer_runs_is_no_rival() -> None:
    found = shape_tasks([(16, 64), (64, 64)], HWPQConfig(), TARGET)
    twice = shape_tasks([(16, 64), (64, 64), (16, 64)], HWPQConfig(), TARGET)
    assert [task.workload for task in found] == [task.workload for task in twice]
    assert twice[0].calls == 2 * found[0].calls
    assert twice[0].layers == ("16x64", "16x64")
    config = HWPQConfig(default=LayerScheme(), overrides={"odd": LayerScheme(sparsity=None)})
    assert all(
        task.rival_of is None for w, task in tasks(config).items() if w.weight_format == "dense_int8" and w.K == 33
    )


def test_shapes_are_in_the_default_scheme() -> None:
    config = HWPQConfig(default=LayerScheme(dtype="int4", group_size=32))
    found = shape_tasks([(20, 64)], config, TARGET)
    assert [task.workload for task in found[:5]] == [
        LinearWorkload("sparse24_int4", "int8", 32, M, 24, 64) for M in (1, *BUCKETS)
    ]
    assert {task.workload.weight_format for task in found[5:]} == {"dense_int4"}
    assert len(shape_tasks([(20, 64)], config, TARGET, rivals=False)) == 5
    assert found[0].layers == ("20x64",)


def test_weight_only_rivals_are_weight_only() -> None:
    config = HWPQConfig(default=LayerScheme(dtype="int4"), activations="float")
    found = shape_tasks([(16, 64)], config, TARGET)
    assert {task.workload.activation_dtype for task in found} == {"float32"}
    assert len({task.workload.weight_format for task in found}) == 2


def test_a_shape_that_can_not_be_sparse_is_told() -> None:
    with pytest.raises(ConfigError, match="shape 8x33 in sparse24_int8: in_features 33 is not divisible by 4"):
        shape_tasks([(8, 33)], HWPQConfig(), TARGET)


def test_tensor_core_layouts_have_rivals_too() -> None:
    target = resolve_target("cuda:sm_80", threads=2)
    found = shape_tasks([(256, 512)], HWPQConfig(), target)
    assert {task.workload.weight_format for task in found} == {"mma_sparse24_int8", "mma_dense_int8"}
