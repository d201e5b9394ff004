"""FuseRotary: what is fused, and what must not be."""

import pytest
import tvm
from tvm import relax, tirx
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.relax_passes.fuse_rotary import FuseRotary
from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.kv_cache import kv_cache_update

from .kernels import called, descriptions, fused, with_kernels

# 3 heads of queries, 1 of keys and values, of 4 features; 2 layers of 16 tokens.
CACHE = (2, 2, 1, 1, 16, 4)
SHAPE = {"layers": 2, "batch": 1, "kv_heads": 1, "head_dim": 4, "max_len": 16}


@I.ir_module(check_well_formed=False)
class Layer:
    """Queries, keys and values are slices of one product, as in a Llama."""

    @T.prim_func(private=True)
    def update():
        T.evaluate(0)

    @T.prim_func(private=True)
    def attend():
        T.evaluate(0)

    @R.function
    def main(
        qkv: R.Tensor((1, "seq_len", 20), "float32"),
        cos: R.Tensor((1, "seq_len", 4), "float32"),
        sin: R.Tensor((1, "seq_len", 4), "float32"),
        past: R.Tensor((1,), "int32"),
        cache: R.Tensor((2, 2, 1, 1, 16, 4), "float32"),
    ):
        seq_len = T.int64()
        cls = Layer
        with R.dataflow():
            q = R.permute_dims(
                R.reshape(R.strided_slice(qkv, [2], [0], [12]), R.shape([1, seq_len, 3, 4])), [0, 2, 1, 3]
            )
            k = R.permute_dims(
                R.reshape(R.strided_slice(qkv, [2], [12], [16]), R.shape([1, seq_len, 1, 4])), [0, 2, 1, 3]
            )
            v = R.permute_dims(
                R.reshape(R.strided_slice(qkv, [2], [16], [20]), R.shape([1, seq_len, 1, 4])), [0, 2, 1, 3]
            )
            c = R.expand_dims(cos, [1])
            s = R.expand_dims(sin, [1])
            q_low = R.strided_slice(q, [3], [0], [2], [1])
            q_high = R.strided_slice(q, [3], [2], [9223372036854775807], [1])
            q_turned = R.concat((R.negative(q_high), q_low), axis=-1)
            q_rotated = R.add(R.multiply(q, c), R.multiply(q_turned, s))
            k_low = R.strided_slice(k, [3], [0], [2], [1])
            k_high = R.strided_slice(k, [3], [2], [9223372036854775807], [1])
            k_turned = R.concat((R.negative(k_high), k_low), axis=-1)
            k_rotated = R.add(R.multiply(k, c), R.multiply(k_turned, s))
            after = R.call_tir_inplace(
                cls.update, (k_rotated, v, past, cache, 1), [3], R.Tensor((2, 2, 1, 1, 16, 4), "float32")
            )
            out = R.call_tir(cls.attend, (q_rotated, after, past, 1), R.Tensor((1, seq_len, 3, 4), "float32"))
            result = (out, after)
            R.output(result)
        return result


@I.ir_module(check_well_formed=False)
class Expected:
    @T.prim_func(private=True)
    def attend():
        T.evaluate(0)

    @T.prim_func(private=True)
    def rotary_update():
        T.evaluate(0)

    @R.function
    def main(
        qkv: R.Tensor((1, "seq_len", 20), "float32"),
        cos: R.Tensor((1, "seq_len", 4), "float32"),
        sin: R.Tensor((1, "seq_len", 4), "float32"),
        past: R.Tensor((1,), "int32"),
        cache: R.Tensor((2, 2, 1, 1, 16, 4), "float32"),
    ):
        seq_len = T.int64()
        cls = Expected
        with R.dataflow():
            both = R.call_tir_inplace(
                cls.rotary_update,
                (qkv, cos, sin, past, cache, 1),
                [4, -1],
                [R.Tensor((2, 2, 1, 1, 16, 4), "float32"), R.Tensor((1, 3, seq_len, 4), "float32")],
            )
            after = both[0]
            query = both[1]
            out = R.call_tir(cls.attend, (query, after, past, 1), R.Tensor((1, seq_len, 3, 4), "float32"))
            result = (out, after)
            R.output(result)
        return result


def test_the_golden_ir():
    kernels = {
        "update": kv_cache_update(**SHAPE, seq_len=None),
        "attend": attention(**SHAPE, heads=3, seq_len=None, scale=0.5),
    }
    after = fused(with_kernels(Layer, kernels), FuseRotary())
    tvm.ir.assert_structural_equal(after["main"], Expected["main"], map_free_vars=True)
    assert called(after["main"]) == called(Expected["main"])
    # The update that nothing calls any more is gone.
    assert descriptions(after).keys() == {"attend", "rotary_update"}
    assert descriptions(after)["rotary_update"] == {
        "op": "rotary_update",
        **SHAPE,
        "heads": 3,
        "rotary_dim": 4,
        "seq_len": -1,
        "table_batch": 1,
        "columns": [20],
        "inputs": [0, 0, 0],
        "first": [0, 12, 16],
        "biases": [0, 0, 0],
        "query_epsilon": -1.0,
        "key_epsilon": -1.0,
        "cache_dtype": "float32",
    }


class Decoder:
    """Builds a decode step of one layer; methods are what a test may replace."""

    rotary_dim = 4
    cache_dtype = "float32"

    def __init__(self):
        self.bb = relax.BlockBuilder()
        self.emit = self.bb.emit

    def heads(self, x, count):
        reshaped = self.emit(relax.op.reshape(self.head_input(x), (1, 1, count, 4)))
        return self.emit(relax.op.permute_dims(self.normalised(reshaped), [0, 2, 1, 3]))

    def head_input(self, x):
        return x

    def normalised(self, x):
        return x

    def half(self, x, start, stop):
        return self.emit(relax.op.strided_slice(x, [3], [start], [stop], [1]))

    def turned(self, x):
        half = self.rotary_dim // 2
        low, high = self.half(x, 0, half), self.half(x, half, self.rotary_dim)
        return self.emit(relax.op.concat([self.emit(relax.op.negative(high)), low], axis=-1))

    def rotated(self, x, cos, sin):
        cos, sin = (self.emit(relax.op.expand_dims(table, [1])) for table in (cos, sin))
        by_cos = self.emit(relax.op.multiply(x, cos))
        return self.emit(relax.op.add(by_cos, self.emit(relax.op.multiply(self.turned(x), sin))))

    def rotated_key(self, x, cos, sin):
        return self.rotated(x, cos, sin)

    def value(self, v):
        return v

    def also_read(self, query):
        return []

    def module(self):
        dims = {
            "q": (1, 1, 12),
            "k": (1, 1, 4),
            "v": (1, 1, 4),
            "cos": (1, 1, self.rotary_dim),
            "sin": (1, 1, self.rotary_dim),
        }
        types = {name: R.Tensor(shape, "float32") for name, shape in dims.items()}
        types |= {
            "past": R.Tensor((1,), "int32"),
            "cache": R.Tensor(CACHE, "float32"),
            "vector": R.Tensor((4,), "float32"),
        }
        params = {name: relax.Var(name, each) for name, each in types.items()}
        self.vector = params["vector"]
        q, k, v, cos, sin, past, cache, _ = params.values()
        bb = self.bb
        update = bb.add_func(kv_cache_update(**SHAPE, seq_len=1), "update")
        attend = bb.add_func(attention(**SHAPE, heads=3, seq_len=1, scale=0.5), "attend")
        layer = relax.prim_value(tirx.IntImm("int64", 0))
        with bb.function("main", list(params.values())):
            with bb.dataflow():
                query = self.rotated(self.heads(q, 3), cos, sin)
                key = self.rotated_key(self.heads(k, 1), cos, sin)
                value = self.value(self.heads(v, 1)) if type(self).normalised is Decoder.normalised else self.plain(v)
                after = self.emit(
                    relax.op.call_tir_inplace(update, [key, value, past, cache, layer], [3], out_ty=cache.ty)
                )
                out_type = relax.TensorType([1, 1, 3, 4], "float32")
                self.attention = lambda q: self.emit(
                    relax.op.call_tir(attend, [q, after, past, layer], out_ty=out_type)
                )
                out = self.attention(query)
                outputs = [bb.emit_output(each) for each in (out, after, *self.also_read(query))]
            bb.emit_func_output(relax.Tuple(outputs))
        return bb.get()

    def plain(self, x):
        reshaped = self.emit(relax.op.reshape(x, (1, 1, 1, 4)))
        return self.emit(relax.op.permute_dims(reshaped, [0, 2, 1, 3]))


class WithBias(Decoder):
    def head_input(self, x):
        bias = self.vector if int(x.ty.shape.values[-1]) == 4 else self.emit(relax.op.concat([self.vector] * 3, axis=0))
        return self.emit(relax.op.add(x, bias))


class WithNorms(Decoder):
    epsilon = 0.5

    def normalised(self, x):
        mean = self.emit(relax.op.mean(self.emit(relax.op.multiply(x, x)), axis=[-1], keepdims=True))
        factor = self.emit(relax.op.rsqrt(self.emit(relax.op.add(mean, relax.const(self.epsilon, "float32")))))
        return self.emit(relax.op.multiply(self.vector, self.emit(relax.op.multiply(x, factor))))


class Partial(Decoder):
    rotary_dim = 2

    def rotated(self, x, cos, sin):
        first = super().rotated(self.half(x, 0, 2), cos, sin)
        return self.emit(relax.op.concat([first, self.half(x, 2, 4)], axis=-1))


class ReadTwice(Decoder):
    def also_read(self, query):
        return [self.emit(relax.op.negative(query))]


MATCHES = {
    WithBias: {"biases": [1, 1, 1]},
    WithNorms: {"query_epsilon": 0.5, "key_epsilon": 0.5},
    Partial: {"rotary_dim": 2},
    ReadTwice: {"columns": [12, 4, 4], "inputs": [0, 1, 2], "first": [0, 0, 0]},
}


@pytest.mark.parametrize("decoder", MATCHES)
def test_variants_are_fused(decoder):
    after = fused(decoder().module(), FuseRotary())
    relax.analysis.well_formed(after)
    found = descriptions(after)["rotary_update"]
    assert {name: found[name] for name in MATCHES[decoder]} == MATCHES[decoder]


class Interleaved(Decoder):
    """Pairs of neighbours are turned instead of halves."""

    def turned(self, x):
        low = self.emit(relax.op.strided_slice(x, [3], [0], [4], [2]))
        high = self.emit(relax.op.strided_slice(x, [3], [1], [4], [2]))
        return self.emit(relax.op.concat([self.emit(relax.op.negative(high)), low], axis=-1))


class OtherSign(Decoder):
    def turned(self, x):
        return self.emit(
            relax.op.concat([self.emit(relax.op.negative(self.half(x, 0, 2))), self.half(x, 2, 4)], axis=-1)
        )


class OtherTables(Decoder):
    def rotated_key(self, x, cos, sin):
        return self.rotated(x, sin, cos)


class KeysAsTheyAre(Decoder):
    def rotated_key(self, x, cos, sin):
        return x


class ChangedValues(Decoder):
    def value(self, v):
        return self.emit(relax.op.nn.silu(v))


class NoHeadsAxis(Decoder):
    """The tables are not broadcast over heads."""

    def rotated(self, x, cos, sin):
        cos, sin = (self.emit(relax.op.reshape(table, (1, 1, 1, 4))) for table in (cos, sin))
        by_cos = self.emit(relax.op.multiply(x, cos))
        return self.emit(relax.op.add(by_cos, self.emit(relax.op.multiply(self.turned(x), sin))))


class TwoAttentions(Decoder):
    """Two attentions, of different queries, read one update."""

    def also_read(self, query):
        return [self.attention(self.emit(relax.op.negative(query)))]


class LastFeatures(Decoder):
    """What is rotated starts in the middle of a head."""

    rotary_dim = 2

    def rotated(self, x, cos, sin):
        last = self.half(x, 2, 4)
        return self.emit(relax.op.concat([super().rotated(last, cos, sin), last], axis=-1))


NEAR_MISSES = [
    Interleaved,
    OtherSign,
    OtherTables,
    KeysAsTheyAre,
    ChangedValues,
    NoHeadsAxis,
    TwoAttentions,
    LastFeatures,
]


@pytest.mark.parametrize("decoder", NEAR_MISSES)
def test_near_misses_stay(decoder):
    before = decoder().module()
    tvm.ir.assert_structural_equal(FuseRotary()(before), before)


class NegativeEpsilon(WithNorms):
    epsilon = -1.0


class EpsilonNotANumber(WithNorms):
    epsilon = float("nan")


@pytest.mark.parametrize("decoder", [NegativeEpsilon, EpsilonNotANumber])
def test_epsilons_that_say_something_else_to_the_kernel_are_refused(decoder):
    before = decoder().module()
    tvm.ir.assert_structural_equal(FuseRotary()(before), before)


def test_a_module_in_which_every_update_is_called_is_not_rebuilt():
    before = KeysAsTheyAre().module()
    assert FuseRotary()(before).same_as(before)


def test_global_infos_survive():
    before = Decoder().module()
    before.update_global_info("dummy", [relax.DummyGlobalInfo()])
    after = FuseRotary()(before)
    assert "rotary_update" in {found["op"] for found in descriptions(after).values()}
    assert list(after.global_infos) == ["dummy"]
