"""The compression of weights as IR."""

import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.packing import packing_groups
from hwpq_tvm.relax_passes.transform_params import TRANSFORM, transform_module

from .models import ENTRIES, TinyLM

FLOAT = LayerScheme(None, "float32")


@I.ir_module(check_well_formed=False)
class Expected:
    """The kernels stand here by name only."""

    @T.prim_func(private=True)
    def contribution_factors_16():
        T.evaluate(0)

    @T.prim_func(private=True)
    def compress_sparse24_int8_24_16():
        T.evaluate(0)

    @T.prim_func(private=True)
    def compress_sparse24_int8_9_16():
        T.evaluate(0)

    @R.function
    def transform_params(
        squares: R.Tensor((16,), "float32"),
        q: R.Tensor((24, 16), "float32"),
        k: R.Tensor((9, 16), "float32"),
    ) -> R.Tuple(
        R.Tensor((24, 8), "float32"),
        R.Tensor((9, 8), "float32"),
        R.Tensor((5, 1, 10, 32), "int8"),
        R.Tensor((40,), "float32"),
    ):
        R.func_attr({"num_input": 0, "hwpq.outputs": ["q.statistics", "k.statistics", "q+k.weight", "q+k.scale"]})
        cls = Expected
        with R.dataflow():
            f = R.call_tir(cls.contribution_factors_16, (squares,), R.Tensor((16,), "float32"))
            a = R.call_tir(
                cls.compress_sparse24_int8_24_16,
                (q, f, squares),
                [R.Tensor((3, 1, 10, 32), "int8"), R.Tensor((24,), "float32"), R.Tensor((24, 8), "float32")],
            )
            a_weight = a[0]
            a_scale = a[1]
            a_statistics = a[2]
            out_a = a_statistics
            b = R.call_tir(
                cls.compress_sparse24_int8_9_16,
                (k, f, squares),
                [R.Tensor((2, 1, 10, 32), "int8"), R.Tensor((16,), "float32"), R.Tensor((9, 8), "float32")],
            )
            b_weight = b[0]
            b_scale = b[1]
            b_statistics = b[2]
            out_b = b_statistics
            out_weight = R.concat([a_weight, b_weight], axis=0)
            out_scale = R.concat([a_scale, b_scale], axis=0)
            R.output(out_a, out_b, out_weight, out_scale)
        result = out_a, out_b, out_weight, out_scale
        return result


def emitted(config, *, calibrated=True):
    groups = packing_groups(make_plan(TinyLM, ENTRIES, config, calibrated=calibrated))
    return groups, transform_module(groups)


def called(function):
    """Names of the functions that a function calls, in order: structural equality does not compare them."""
    names = []
    relax.analysis.post_order_visit(
        function, lambda e: names.append(e.name_hint) if isinstance(e, tvm.ir.GlobalVar) else None
    )
    return names


def test_the_golden_ir():
    scheme = LayerScheme(reconstruct="none")
    _, mod = emitted(HWPQConfig(default=scheme, overrides={"odd": FLOAT}, lm_head=FLOAT))
    tvm.ir.assert_structural_equal(mod[TRANSFORM], Expected[TRANSFORM], map_free_vars=True)
    assert called(mod[TRANSFORM]) == called(Expected[TRANSFORM])
    relax.analysis.well_formed(mod)


def test_reconstructed_layers_ask_for_the_gram_matrix_and_measure_their_output():
    config = HWPQConfig(default=LayerScheme(reconstruct="iht"), overrides={"k": LayerScheme(reconstruct="cg")})
    _, mod = emitted(config)
    function = mod[TRANSFORM]
    relax.analysis.well_formed(mod)
    params = [param.name for param in function.params]
    assert params == [
        "q.input_squares",
        "q",
        "q.input_gram",
        "k",
        "odd.input_squares",
        "odd",
        "embed.input_squares",
        "embed",
    ]
    names = [str(name) for name in function.attrs["hwpq.outputs"]]
    assert names[:4] == ["q.output_error", "q.statistics", "k.output_error", "k.statistics"]
    assert [name for name in called(function) if name.startswith("reconstruct")] == [
        "reconstruct_iht_24x16",
        "reconstruct_cg_9x16",
    ]
    assert [tuple(map(int, t.shape.values)) for t in function.ret_ty.fields[:4]] == [(24, 2), (24, 8), (9, 2), (9, 8)]


def test_without_calibration_nothing_is_reconstructed():
    _, mod = emitted(HWPQConfig(default=LayerScheme(reconstruct="iht")), calibrated=False)
    assert not [name for name in called(mod[TRANSFORM]) if name.startswith("reconstruct")]


def test_formats_on_one_input_share_its_squares():
    config = HWPQConfig(overrides={"k": LayerScheme(None, "int4", group_size=-1)})
    groups, mod = emitted(config)
    assert [group.input for group in groups[:2]] == ["q", "q"]
    assert [param.name for param in mod[TRANSFORM].params][:4] == ["q.input_squares", "q", "q.input_gram", "k"]
