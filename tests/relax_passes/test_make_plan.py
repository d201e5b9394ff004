"""The plan: schemes, reasons, groups, refusals."""

import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import ConfigError, PlanError
from hwpq_tvm.relax_passes.make_plan import make_plan

from .models import ENTRIES, TinyLM


def plan(config=None, *, calibrated=True):
    return make_plan(TinyLM, ENTRIES, config or HWPQConfig(), calibrated=calibrated)


def schemes(planned):
    return {layer.name: (str(layer.scheme), layer.reason) for layer in planned.linears}


def test_every_linear_has_a_scheme_or_a_reason():
    assert schemes(plan()) == {
        "q": ("2:4 int8", None),
        "k": ("2:4 int8", None),
        "odd": ("dense int8", "in_features 33 is not divisible by 4"),
        "embed": ("dense int8", None),
    }


def test_linears_on_one_input_form_a_group_when_their_format_is_one():
    assert [[layer.name for layer in group.members] for group in plan().groups] == [["q", "k"], ["odd"], ["embed"]]
    apart = plan(HWPQConfig(overrides={"k": LayerScheme(sparsity=None)}))
    assert [[layer.name for layer in group.members] for group in apart.groups] == [["q"], ["k"], ["odd"], ["embed"]]


def test_a_tied_table_is_the_heads():
    planned = plan()
    assert [table.weight for table in planned.embeddings] == ["embed"]
    assert len(planned.layers) == 4
    pruned = plan(HWPQConfig(overrides={"embed": LayerScheme()}))
    assert schemes(pruned)["embed"] == ("dense int8", "tied to an embedding, which is read by row")


def test_float32_is_left_where_it_is():
    planned = plan(HWPQConfig(default=LayerScheme(None, "float32"), lm_head=LayerScheme(None, "float32")))
    assert {str(layer.scheme) for layer in planned.linears} == {"dense float32"}
    assert not planned.embeddings
    assert not planned.needs_calibration


def test_without_calibration_the_metric_is_magnitude():
    assert plan().needs_calibration
    planned = plan(calibrated=False)
    assert {layer.scheme.metric for layer in planned.linears if layer.scheme.sparsity} == {"magnitude"}
    assert not planned.needs_calibration


def test_ignored_layers_say_by_what():
    assert schemes(plan(HWPQConfig(ignore=["k"])))["k"] == ("dense int8", "ignored by 'k'")


def test_a_pattern_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(ConfigError, match=r"ignore: 'kk' matches no linear layer .* near names: k"):
        plan(HWPQConfig(ignore=["kk"]))
    with pytest.raises(ConfigError, match=r"overrides: '.\*lm_head' matches no linear layer"):
        plan(HWPQConfig(overrides={".*lm_head": LayerScheme()}))


def test_a_model_without_linears_is_refused():
    @I.ir_module
    class Empty:
        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            R.func_attr({"num_input": 1})
            return x

    assert isinstance(Empty["main"], relax.Function)
    assert isinstance(Empty, tvm.IRModule)
    with pytest.raises(PlanError, match="no linear layer"):
        make_plan(Empty, ("main",), HWPQConfig(), calibrated=True)


INT4 = LayerScheme(None, "int4", group_size=32)


def test_groups_that_do_not_divide_are_named_at_once_padded_or_left_alone():
    with pytest.raises(PlanError) as error:
        plan(HWPQConfig(default=INT4))
    lines = str(error.value).splitlines()
    assert [line.split()[1] for line in lines] == ["q", "k", "odd"]
    assert "in_features 33 is not divisible by group_size 32; use another group_size, or group_policy 'pad'" in lines[2]
    padded = schemes(plan(HWPQConfig(default=INT4, group_policy="pad")))
    assert padded["odd"][0] == "dense int4 g32"
    assert padded["odd"][1].endswith("its last group is a short one")
    assert schemes(plan(HWPQConfig(default=INT4, group_policy="skip")))["odd"] == (
        "dense float32",
        "in_features 33 is not divisible by group_size 32",
    )


def test_auto_reconstruction_is_decided_for_the_model_as_a_whole(monkeypatch):
    planned = plan()
    assert {layer.scheme.reconstruct for layer in planned.linears if layer.scheme.sparsity} == {"iht"}
    assert "auto chose iht for 2 layers" in planned.reconstruction
    monkeypatch.setattr("hwpq_tvm.relax_passes.make_plan.AUTO_SECONDS", 0)
    planned = plan()
    assert {layer.scheme.reconstruct for layer in planned.linears} == {"none"}
    assert "chose none" in planned.reconstruction
    chosen = plan(HWPQConfig(default=LayerScheme(reconstruct="cg")))
    assert {layer.scheme.reconstruct for layer in chosen.linears if layer.scheme.sparsity} == {"cg"}
    assert chosen.reconstruction is None


def test_only_what_uses_the_inputs_asks_for_calibration():
    def needs(scheme):
        planned = plan(HWPQConfig(default=scheme, group_policy="pad"))
        return planned.needs_calibration, any(group.needs_gram for group in planned.groups)

    assert needs(LayerScheme(None)) == (False, False)
    assert needs(INT4) == (True, False)
    assert needs(LayerScheme(None, "int4", clip_search=False)) == (False, False)
    assert needs(LayerScheme(0.5, metric="magnitude", reconstruct="none")) == (False, False)
    assert needs(LayerScheme(0.5, reconstruct="none")) == (True, False)
    assert needs(LayerScheme(metric="magnitude", reconstruct="cg")) == (True, True)


def test_ignored_layers_keep_what_their_scheme_says_of_other_sparsities():
    planned = plan(HWPQConfig(default=LayerScheme(0.5, selection="ewma_sequential"), ignore=["q", "k"]))
    assert schemes(planned)["q"] == ("dense int8", "ignored by 'q'")
    assert schemes(planned)["odd"][0] == "50% int8"


def test_other_sparsities_are_stored_dense():
    planned = plan(HWPQConfig(default=LayerScheme("4:8", "float16"), overrides={"k": LayerScheme(0.5)}))
    formats = {layer.name: (layer.format.sparsity, layer.format.dtype) for layer in planned.linears}
    assert formats["q"] == (None, "float16")
    assert formats["k"] == (None, "int8")
    assert schemes(planned)["k"] == ("50% int8", None)
