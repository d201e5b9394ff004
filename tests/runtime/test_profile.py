import signal
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import tiny_model
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.runtime import profile as module
from hwpq_tvm.runtime.compiled_model import CompiledModel
from hwpq_tvm.runtime.manifest import EntrySpec, TensorSpec
from hwpq_tvm.runtime.profile import PARTS, profile, recorded
from hwpq_tvm.runtime.tvm_runtime import as_tensor

N, K = 1031, 517
CACHE = (1, 2, 1, 1, 3, K)
PARAMETERS = {"table": (7, K), "gain": (K,), "weight": (N, K), "scale": (N, 1)}


@I.ir_module(s_tir=True)
class Parts:
    """A step with a kernel of every part, the linear layer's in a function of its own."""

    @T.prim_func(s_tir=True, private=True)
    def pick(ids: T.Buffer((1, 1), "int64"), table: T.Buffer((7, K), "float32"), out: T.Buffer((1, K), "float32")):
        for k in range(K):
            with T.sblock("pick"):
                vk = T.axis.remap("S", [k])
                out[0, vk] = table[ids[0, 0], vk]

    @T.prim_func(s_tir=True, private=True)
    def gained(x: T.Buffer((1, K), "float32"), gain: T.Buffer((K,), "float32"), out: T.Buffer((1, K), "float32")):
        for k in range(K):
            with T.sblock("gained"):
                vk = T.axis.remap("S", [k])
                out[0, vk] = x[0, vk] * gain[vk]

    @T.prim_func(s_tir=True, private=True)
    def remember(x: T.Buffer((1, K), "float32"), cache: T.Buffer(CACHE, "float32")):
        for k in range(K):
            with T.sblock("remember"):
                vk = T.axis.remap("S", [k])
                cache[0, 0, 0, 0, 0, vk] = x[0, vk]

    @T.prim_func(s_tir=True, private=True)
    def product(
        x: T.Buffer((1, K), "float32"),
        weight: T.Buffer((N, K), "float32"),
        scale: T.Buffer((N, 1), "float32"),
        out: T.Buffer((1, N), "float32"),
    ):
        for n, k in T.grid(N, K):
            with T.sblock("product"):
                vn, vk = T.axis.remap("SR", [n, k])
                with T.init():
                    out[0, vn] = T.float32(0)
                out[0, vn] = out[0, vn] + x[0, vk] * weight[vn, vk] * scale[vn, 0]

    @R.function
    def layer(
        x: R.Tensor((1, K), "float32"), weight: R.Tensor((N, K), "float32"), scale: R.Tensor((N, 1), "float32")
    ) -> R.Tensor((1, N), "float32"):
        cls = Parts
        return R.call_tir(cls.product, (x, weight, scale), out_ty=R.Tensor((1, N), "float32"))

    @R.function
    def decode(
        ids: R.Tensor((1, 1), "int64"),
        cache: R.Tensor(CACHE, "float32"),
        table: R.Tensor((7, K), "float32"),
        gain: R.Tensor((K,), "float32"),
        weight: R.Tensor((N, K), "float32"),
        scale: R.Tensor((N, 1), "float32"),
    ):
        R.func_attr({"num_input": 2})
        cls = Parts
        x = R.call_tir(cls.pick, (ids, table), out_ty=R.Tensor((1, K), "float32"))
        y = R.call_tir(cls.gained, (x, gain), out_ty=R.Tensor((1, K), "float32"))
        z = R.call_tir(cls.gained, (y, gain), out_ty=R.Tensor((1, K), "float32"))
        kept = R.call_tir_inplace(cls.remember, (z, cache), out_ty=R.Tensor(CACHE, "float32"), inplace_indices=[1])
        out = cls.layer(z, weight, scale)
        return (out, kept)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "model.so"
    tvm.compile(Parts, tvm.target.Target({"kind": "llvm", "num-cores": 1})).export_library(str(path))
    return path


@pytest.fixture
def model(library):
    rng = np.random.default_rng()
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in PARAMETERS.items()}
    cache = TensorSpec("cache", CACHE, "float32")
    entry = EntrySpec((TensorSpec("ids", (1, 1), "int64"), cache), (TensorSpec("out", (1, N), "float32"), cache))
    manifest = tiny_model.manifest(
        entries={"decode": entry},
        parameters=tuple(TensorSpec(name, shape, "float32") for name, shape in PARAMETERS.items()),
        generation=replace(tiny_model.manifest().generation, kv_cache_shape=CACHE),
    )
    return CompiledModel(library, params, manifest, {}, {})


@pytest.fixture
def step(model):
    ids, cache = as_tensor(np.array([[3]])), as_tensor(np.zeros(CACHE, np.float32))
    return lambda: model.call("decode", ids, cache)


WEIGHT_BYTES = 4 * (N * K + N)


def test_calls_are_told_apart_by_what_they_take(model, step):
    calls = recorded(model, step)
    kernels = [(call.name, call.part, call.weight_bytes) for call in calls if not call.name.startswith("vm.")]
    assert kernels == [
        ("pick", "other kernels", 0),
        ("gained", "other kernels", 0),
        ("gained", "other kernels", 0),
        ("remember", "attention", 0),
        ("layer", "virtual machine", 0),
        ("product", "linears", WEIGHT_BYTES),
    ]
    assert {call.part for call in calls if call.name.startswith("vm.")} == {"virtual machine"}
    # Every callback is one end of one call.
    assert sorted(end for call in calls for end in (call.begin, call.end)) == list(range(2 * len(calls)))
    product, layer = (next(call for call in calls if call.name == name) for name in ("product", "layer"))
    assert layer.begin < product.begin < product.end < layer.end


def test_times_add_up_to_the_step_and_the_largest_kernel_has_most_of_it(model, step):
    found = profile(model, step, repeat=9)
    functions = {function.name: function for function in found.functions}
    assert (functions["product"].calls, functions["gained"].calls) == (1, 2)
    assert functions["product"].weight_bytes == WEIGHT_BYTES
    assert found.linears == {"weight": functions["product"].seconds}
    # Half a million steps of one sum after the other against a thousand products.
    assert functions["product"].seconds > 10 * functions["gained"].seconds
    assert found.part_seconds("linears") == functions["product"].seconds > found.step_seconds / 4
    # What it calls is not counted again.
    assert functions["layer"].seconds < functions["product"].seconds / 2
    assert sum(found.part_seconds(part) for part in PARTS) == pytest.approx(found.step_seconds)
    assert 0 < found.callback_seconds < 1e-4
    assert (found.repeat, found.to_json()["parts"]["attention"]) == (9, functions["remember"].seconds)


def test_results_stay_what_they_are(model, step):
    expected = np.from_dlpack(step()[0]).copy()
    recorded(model, step)
    profile(model, step, repeat=1)
    out, cache = map(np.from_dlpack, step())
    np.testing.assert_array_equal(out, expected)
    x = model.params["table"][3] * model.params["gain"] ** 2
    np.testing.assert_allclose(cache[0, 0, 0, 0, 0], x, rtol=1e-6)


@pytest.fixture
def instruments(model, monkeypatch):
    """What the virtual machine was told to call, in turn."""
    told = []
    machine = type(model.machine)
    usual = machine.instrument
    monkeypatch.setattr(machine, "instrument", lambda self, function: told.append(function) or usual(self, function))
    return told


def test_what_a_step_raises_comes_through_and_ends_the_callbacks(model, step, instruments):
    class Failure(Exception):
        pass

    def fails():
        step()
        raise Failure

    def fails_stamped():
        step()
        if len(instruments) > 2:
            raise Failure

    for measure, failing in ((recorded, fails), (profile, fails), (profile, fails_stamped)):
        instruments.clear()
        with pytest.raises(Failure):
            measure(model, failing)
        assert instruments[0] is not None
        assert instruments[-1] is None


def test_what_a_callback_raises_comes_through(model, step, instruments, monkeypatch):
    clock = Mock(side_effect=[0, 1, 2, MemoryError, *range(3, 99)])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=time.perf_counter, perf_counter_ns=clock))
    with pytest.raises(MemoryError):
        profile(model, step)
    assert instruments[-1] is None


def test_an_interruption_waits_for_the_end_of_a_step_with_callbacks(model, step, instruments):
    ended = []
    usual = signal.getsignal(signal.SIGINT)

    def interrupted():
        if len(instruments) > 2:
            signal.raise_signal(signal.SIGINT)
            step()
            ended.append(signal.getsignal(signal.SIGINT))
        else:
            step()

    with pytest.raises(KeyboardInterrupt):
        profile(model, interrupted)
    assert len(ended) == 1
    assert instruments[-1] is None
    assert signal.getsignal(signal.SIGINT) is usual is not ended[0]
