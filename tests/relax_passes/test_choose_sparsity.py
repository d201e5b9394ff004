"""Dense or 2:4: by measured times, by predicted ones, and without either."""

from types import SimpleNamespace

import pytest

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.relax_passes.choose_sparsity import runs_of_weights
from hwpq_tvm.relax_passes.linears import find_linears
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.usage import NEW_TOKENS, runs_per_request
from hwpq_tvm.schedules.linear_workload import BUCKETS, LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.targets import resolve_target

from .models import ENTRIES, TinyLM, UntiedLM

AUTO = LayerScheme(sparsity="auto")
TOKENS = (1, *BUCKETS)


class Records:
    """Records that a function makes up: it gives the seconds of a workload, or None."""

    def __init__(self, seconds, evidence=Evidence.MEASURED):
        self.seconds, self.evidence, self.asked = seconds, evidence, []

    def best(self, workload):
        self.asked.append(workload)
        seconds = self.seconds(workload)
        return None if seconds is None else SimpleNamespace(median=seconds, evidence=self.evidence)


def plan(config, records=None, target=None):
    planned = make_plan(TinyLM, ENTRIES, config, calibrated=True, target=target, records=records)
    return planned, {layer.name: layer for layer in planned.linears}


def test_a_layer_has_the_format_in_which_a_request_takes_less_time():
    """Decoding runs 64 times as often as a prompt."""
    wins_when_decoding = Records(lambda w: (1.0 if w.M == 1 else 3.0) if "sparse" in w.weight_format else 2.0)
    _, layers = plan(HWPQConfig(default=AUTO), wins_when_decoding)
    assert layers["q"].scheme.sparsity == layers["k"].scheme.sparsity == "2:4"
    assert layers["q"].chosen == "auto chose 2:4: 67000.00 ms of a request in 2:4, 130000.00 ms dense, measured"
    wins_on_prompts = Records(lambda w: (2.1 if w.M == 1 else 0.1) if "sparse" in w.weight_format else 2.0)
    planned, layers = plan(HWPQConfig(default=AUTO), wins_on_prompts)
    assert layers["q"].scheme.sparsity is layers["k"].scheme.sparsity is None
    assert str(layers["k"].scheme) == "dense int8"
    assert layers["k"].format.label == "dense_int8"
    assert "auto chose dense" in layers["k"].chosen
    assert layers["k"].reason is None
    assert [each.name for each in planned.groups[0].members] == ["q", "k"]


@pytest.mark.parametrize(("sparse", "sparsity"), [(1.0, None), (0.995, None), (0.98, "2:4")])
def test_dense_wins_a_draw(sparse, sparsity):
    records = Records(lambda w: sparse if "sparse" in w.weight_format else 1.0, Evidence.CONFIRMED)
    _, layers = plan(HWPQConfig(default=AUTO), records)
    assert layers["q"].scheme.sparsity == sparsity
    assert layers["q"].chosen.endswith(", confirmed")


def test_layers_on_one_input_are_looked_up_as_the_kernel_that_they_share():
    """The workloads are those of the descriptions that the compressed module will have."""
    records = Records(lambda w: 1.0)
    _, layers = plan(HWPQConfig(default=AUTO), records)
    asked = {each for each in records.asked if each.K == 16}
    rows = sum(layers[name].format.rows(layers[name].N) for name in ("q", "k"))
    formats = (layers["q"].format, plan(HWPQConfig())[1]["q"].format)
    expected = {LinearWorkload.of(each.linear((1, tokens), rows, 16)) for each in formats for tokens in TOKENS}
    assert asked >= expected
    assert {each.N for each in asked} == {rows, 50 + -50 % 8}  # and the head's, whose rivals are asked for
    # k is 2:4 in any case and dense in any case: part of the kernel that q would be in as 2:4, or not.
    for sparsity, together in (("2:4", rows), (None, 24)):
        records = Records(lambda w: 1.0)
        plan(HWPQConfig(default=AUTO, overrides={"k": LayerScheme(sparsity)}), records)
        assert records.asked[0].K == 16
        assert together == records.asked[0].N


def test_layers_that_cannot_be_sparse_are_dense_as_ever():
    records = Records(lambda w: 1.0 if "sparse" in w.weight_format else 2.0)
    _, layers = plan(HWPQConfig(default=AUTO, ignore=["k"], overrides={"embed": AUTO}), records)
    assert layers["q"].scheme.sparsity == "2:4"
    assert {name: layers[name].reason for name in ("k", "odd", "embed")} == {
        "k": "ignored by 'k'",
        "odd": "in_features 33 is not divisible by 4",
        "embed": "tied to an embedding, which is read by row",
    }
    for name in ("k", "odd", "embed"):
        assert layers[name].scheme.sparsity is None
        assert layers[name].chosen is None


@pytest.mark.parametrize("missing", TOKENS)
def test_without_records_of_all_tokens_a_cpu_takes_2_4(missing):
    records = Records(lambda w: None if missing == w.M and "dense" in w.weight_format else 1.0)
    _, layers = plan(HWPQConfig(default=AUTO), records)
    assert layers["q"].scheme.sparsity == "2:4"
    assert layers["q"].chosen == f"auto is 2:4 without tuning records of both formats for M = {missing}"
    assert plan(HWPQConfig(default=AUTO))[1]["q"].chosen.endswith("for M = 1, 4, 16, 64, 256")


def test_predicted_records_decide_nothing():
    records = Records(lambda w: 2.0 if "sparse" in w.weight_format else 1.0, Evidence.PREDICTED)
    planned, layers = plan(HWPQConfig(default=AUTO), records)
    assert layers["q"].scheme.sparsity == "2:4"
    assert planned.rivals == {}


def test_a_gpu_that_is_not_there_is_predicted():
    target = resolve_target("cuda:sm_80")
    _, layers = plan(HWPQConfig(default=AUTO), target=target)
    assert layers["q"].chosen.endswith("predicted for A100 SXM 40GB")
    slow = Records(lambda w: 2.0 if "sparse" in w.weight_format else 1.0)
    _, layers = plan(HWPQConfig(default=AUTO), slow, target)
    assert layers["q"].chosen == "auto chose dense: 130000.00 ms of a request in 2:4, 65000.00 ms dense, measured"
    portable = HWPQConfig(default=AUTO, activations="float")
    assert plan(portable, target=target)[1]["q"].chosen.startswith("auto is 2:4 without tuning records")


def test_rivals_are_kept_for_every_layer_that_was_measured_in_both_formats():
    """Explicit schemes too, with the time of the whole kernel; only numbers of tokens that both were measured for."""
    records = Records(
        lambda w: None if w.M == 4 and "dense" in w.weight_format else w.M + ("sparse" in w.weight_format)
    )
    planned, _ = plan(HWPQConfig(), records)
    assert planned.rivals["q"] == {
        tokens: {"sparse24_int8": tokens + 1, "dense_int8": tokens} for tokens in TOKENS if tokens != 4
    }
    assert planned.rivals["k"] == planned.rivals["q"]
    dense, _ = plan(HWPQConfig(default=LayerScheme(None)), records)
    assert dense.rivals["q"] == planned.rivals["q"]
    other, _ = plan(HWPQConfig(default=LayerScheme(0.5)), records)
    assert "q" not in other.rivals
    assert plan(HWPQConfig())[0].rivals == {}


def test_tokens_of_a_layer_are_those_of_its_entries():
    """An entry for known tokens counts as decoding, one for any number of tokens as prompts."""
    calls = [(TinyLM[entry], find_linears(TinyLM[entry])) for entry in ENTRIES]
    assert runs_of_weights(calls) == dict.fromkeys(("q", "k", "odd", "embed"), runs_per_request([1, None]))
    calls = [(UntiedLM[entry], find_linears(UntiedLM[entry])) for entry in ENTRIES]
    assert runs_of_weights(calls) == {"q": runs_per_request([1, None]), "head": {1: NEW_TOKENS, BUCKETS[0]: 1.0}}
    decoding = Records(lambda w: 1.0)
    make_plan(TinyLM, ("decode",), HWPQConfig(default=AUTO), calibrated=True, records=decoding)
    assert {each.M for each in decoding.asked} == {1}
