"""CompressLinears: the IR it makes of inference."""

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.relax_passes.compress_linears import CompressLinears
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.packing import arranged, packed_name, packed_types, packing_groups
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.targets import resolve_target

from ..schedules import reference
from .models import ENTRIES, TinyLM


def compressed(config=None):
    plan = make_plan(TinyLM, ENTRIES, config or HWPQConfig(), calibrated=True)
    return plan, CompressLinears(plan, ENTRIES)(TinyLM)


@I.ir_module(check_well_formed=False)
class Expected:
    """What the entries should look like; the kernels stand here by name only."""

    @T.prim_func(private=True)
    def embedding_dense_int8_50_16():
        T.evaluate(0)

    @T.prim_func(private=True)
    def quantize_activations_16():
        T.evaluate(0)

    @T.prim_func(private=True)
    def quantize_activations_33():
        T.evaluate(0)

    @T.prim_func(private=True)
    def linear_sparse24_int8_40_16():
        T.evaluate(0)

    @T.prim_func(private=True)
    def linear_dense_int8_16_33():
        T.evaluate(0)

    @T.prim_func(private=True)
    def linear_dense_int8_56_16():
        T.evaluate(0)

    @R.function
    def decode(
        ids: R.Tensor((1, 1), "int64"),
        bias: R.Tensor((9,), "float32"),
        qk: R.Tensor((5, 1, 10, 32), "int8"),
        qk_scale: R.Tensor((40,), "float32"),
        odd: R.Tensor((2, 1, 16, 32), "int8"),
        odd_scale: R.Tensor((16,), "float32"),
        embed: R.Tensor((7, 1, 16, 32), "int8"),
        embed_scale: R.Tensor((56,), "float32"),
    ) -> R.Tuple(R.Tensor((1, 1, 50), "float32")):
        R.func_attr({"num_input": 1})
        cls = Expected
        with R.dataflow():
            # The tied table is read by row in its packed form.
            rows = R.call_tir(
                cls.embedding_dense_int8_50_16, (ids, embed, embed_scale), R.Tensor((1, 1, 16), "float32")
            )
            x = R.reshape(R.reshape(rows, R.shape([1, 16])), R.shape([1, 1, 16]))
            # q and k share the quantized activation and one kernel; each is a slice of its output.
            quantized = R.call_tir(
                cls.quantize_activations_16, (x,), [R.Tensor((1, 128), "int8"), R.Tensor((1,), "float32")]
            )
            xq = quantized[0]
            xs = quantized[1]
            both = R.call_tir(cls.linear_sparse24_int8_40_16, (xq, xs, qk, qk_scale), R.Tensor((1, 1, 40), "float32"))
            p = R.strided_slice(both, [2], [0], [24])
            k = R.strided_slice(both, [2], [24], [33])
            s = R.add(k, bias)
            ps = R.concat([p, s], axis=2)
            quantized_ps = R.call_tir(
                cls.quantize_activations_33, (ps,), [R.Tensor((1, 128), "int8"), R.Tensor((1,), "float32")]
            )
            psq = quantized_ps[0]
            pss = quantized_ps[1]
            y = R.call_tir(cls.linear_dense_int8_16_33, (psq, pss, odd, odd_scale), R.Tensor((1, 1, 16), "float32"))
            quantized_y = R.call_tir(
                cls.quantize_activations_16, (y,), [R.Tensor((1, 128), "int8"), R.Tensor((1,), "float32")]
            )
            yq = quantized_y[0]
            ys = quantized_y[1]
            padded = R.call_tir(
                cls.linear_dense_int8_56_16, (yq, ys, embed, embed_scale), R.Tensor((1, 1, 56), "float32")
            )
            logits = R.strided_slice(padded, [2], [0], [50])
            result = (logits,)
            R.output(result)
        return result


FLOAT = LayerScheme(None, "float32")


def kernels(function):
    """Names of the kernels that a function calls, in order: structural equality does not compare them."""
    names = []
    relax.analysis.post_order_visit(
        function, lambda e: names.append(e.name_hint) if isinstance(e, tvm.ir.GlobalVar) else None
    )
    return names


def test_the_golden_ir():
    _, after = compressed()
    tvm.ir.assert_structural_equal(after["decode"], Expected["decode"], map_free_vars=True)
    assert kernels(after["decode"]) == kernels(Expected["decode"])


def test_kernels_are_what_their_calls_say():
    _, after = compressed()
    found = {g.name_hint: description(f) for g, f in after.functions_items() if not isinstance(f, relax.Function)}
    prefill = found["linear_sparse24_int8_40_161"]
    assert (prefill["op"], prefill["weight_format"], prefill["lead"], prefill["N"], prefill["K"]) == (
        "linear",
        "sparse24_int8",
        [1, -1],
        40,
        16,
    )
    assert found["linear_sparse24_int8_40_16"]["lead"] == [1, 1]


def test_entries_take_the_same_weights_in_the_same_order():
    _, after = compressed()
    names = [[(p.name, str(p.ty)) for p in after[entry].params[1:]] for entry in ENTRIES]
    assert names[0] == names[1]
    relax.analysis.well_formed(after)


def test_float_weights_stay_and_nothing_is_transformed():
    plan, after = compressed(HWPQConfig(default=FLOAT, lm_head=FLOAT))
    assert not packing_groups(plan)
    assert [p.name for p in after["decode"].params] == ["ids", "embed", "q", "k", "bias", "odd"]
    assert kernels(after["prefill"]).count("linear_dense_float32_24_161") == 1


def test_names_of_groups():
    plan, _ = compressed()
    assert [packed_name(group) for group in packing_groups(plan)] == ["q+k", "odd", "embed"]


def test_a_gpu_quantizes_an_activation_once_for_each_dtype_that_it_multiplies():
    config = HWPQConfig(
        default=LayerScheme(None, "float16"),
        overrides={"k": LayerScheme(None, "float8_e4m3fn")},
        lm_head=LayerScheme(None, "int8"),
    )
    after = {}
    for name in ("cuda:sm_80", "cuda:sm_89"):
        plan = make_plan(TinyLM, ENTRIES, config, calibrated=True, target=resolve_target(name))
        mod = CompressLinears(plan, ENTRIES)(TinyLM)
        relax.analysis.well_formed(mod)
        calls = [description(mod[kernel]) for kernel in kernels(mod["prefill"])]
        after[name] = [fields["dtype"] for fields in calls if fields["op"] == "quantize_activations"]
        formats = [fields["weight_format"] for fields in calls if fields["op"] == "linear"]
        float8 = "mma_dense_float8" + ("_float16" if name == "cuda:sm_80" else "")
        assert sorted(formats) == sorted([float8, "mma_dense_float16", "mma_dense_float16", "mma_dense_int8"])
        weights = {param.name: param.ty for param in mod["decode"].params}
        assert [int(size) for size in weights["q.weight"].shape] == [2, 1, 2048]
        assert [int(size) for size in weights["embed.scale"].shape] == [64]
    # q and k share the float16 activation where float8 is multiplied as float16.
    assert sorted(after["cuda:sm_80"]) == ["float16", "float16", "int8"]
    assert sorted(after["cuda:sm_89"]) == ["float16", "float16", "float8_e4m3fn", "int8"]


def test_members_of_a_group_are_arranged_each_alone():
    """What the host compressed together goes to a GPU in blocks of 16 rows of each member."""
    plan = make_plan(TinyLM, ENTRIES, HWPQConfig(), calibrated=True, target=resolve_target("cuda:sm_80"))
    (group,) = (group for group in packing_groups(plan) if len(group.members) == 2)
    rng, arrays, expected = np.random.default_rng(), {}, []
    parts = []
    for linear in group.members:
        packed, dense = reference.random_weights(rng, linear.format.source, linear.N, linear.K)
        parts.append(packed)
        expected.append(dense)
    for part in parts[0]:
        arrays[f"{packed_name(group)}.{part}"] = np.concatenate([each[part] for each in parts])
    found = arranged(group, arrays)
    assert {name: array.shape for name, array in found.items()} == {
        name: tuple(int(size) for size in type_.shape) for name, type_ in packed_types(group).items()
    }
    whole = {name.rpartition(".")[2]: array for name, array in found.items()}
    read = group.format.dequantize(whole, 48, 16)
    np.testing.assert_array_equal(read[:24], expected[0])
    np.testing.assert_array_equal(read[32:41], expected[1])
    assert not read[24:32].any()
    assert not read[41:].any()
