"""Tensors on their way to a device and back. The device is the CPU: once as it is used, once like a GPU, by copies."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from tiny_model import Reference, V, random_weights

import hwpq_tvm
from hwpq_tvm.errors import DependencyError, TargetError
from hwpq_tvm.runtime import device as module
from hwpq_tvm.runtime.compiled_model import CompiledModel
from hwpq_tvm.runtime.device import CPU, Device, Input
from hwpq_tvm.runtime.profile import profile, recorded
from hwpq_tvm.runtime.session import Session
from hwpq_tvm.runtime.tvm_runtime import aligned_empty, as_array, runtime

COPYING = Device("cpu", copies=True)


@pytest.fixture
def copied(tiny):
    """Function (table, history) -> a model whose tensors are copied to the CPU as if it were a GPU."""

    def make(*weights):
        model = tiny(*weights)
        return CompiledModel(model.library, model.params, model.manifest, {}, {}, device=COPYING)

    return make


@pytest.mark.parametrize(
    ("word", "device"), [("cpu", CPU), ("cuda", Device("cuda", 0, True)), ("cuda:12", Device("cuda", 12, True))]
)
def test_words_for_devices(word, device):
    assert Device.parse(word) == device
    assert Device.parse(str(device)) == device


@pytest.mark.parametrize("word", ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:sm_80"])
def test_other_words_are_refused(word):
    with pytest.raises(TargetError, match='expected "cpu", "cuda" or "cuda:N"'):
        Device.parse(word)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float16", "int64", "float32"])
def test_values_arrive_and_come_back(dtype):
    array = np.random.default_rng().integers(0, 100, (3, 1, 7)).astype(dtype)
    tensor = COPYING.from_host(array)
    before = array.copy()
    array[...] = 0
    np.testing.assert_array_equal(COPYING.to_host(tensor), before)
    back = COPYING.to_host(tensor)
    back[...] = 0  # the caller's own
    np.testing.assert_array_equal(COPYING.to_host(tensor), before)
    assert (back.dtype, back.shape) == (before.dtype, before.shape)


def test_nothing_is_copied_on_the_cpu():
    array = aligned_empty(64).view(np.float32)
    array[...] = 1
    tensor = CPU.from_host(array)
    array[3] = 5
    assert CPU.to_host(tensor)[3] == 5
    assert CPU.to_host(tensor).ctypes.data == array.ctypes.data


@pytest.mark.parametrize("device", [CPU, COPYING], ids=["in place", "copies"])
def test_zeros_and_inputs(device):
    zeros = device.to_host(device.zeros((2, 5), "float32"))
    assert zeros.shape == (2, 5)
    assert not zeros.any()
    value = Input(device, (1, 1), "int64")
    address = value.tensor.data_ptr()
    for number in (7, -3):
        value.set(number)
        assert device.to_host(value.tensor) == [[number]]
    assert value.tensor.data_ptr() == address
    several = Input(device, (3,), "int32")
    several.set(np.array([4, 0, 9]))
    assert device.to_host(several.tensor).tolist() == [4, 0, 9]
    device.synchronize()


def test_a_model_with_copies_writes_what_one_without_does(copied):
    weights = random_weights(11)
    model, reference = copied(*weights), Reference(*weights)
    for prompt in ([5, 6, 7], [200]):
        assert list(model.generate(prompt, max_new_tokens=9)) == reference.greedy(prompt, 9)
    ids = np.random.default_rng().integers(0, V, 17)
    np.testing.assert_allclose(model(ids), reference.logits(list(ids)), atol=1e-4)


def test_several_sequences_with_copies(tiny_batch):
    weights = random_weights(14)
    model, reference = tiny_batch(*weights), Reference(*weights)
    copied = CompiledModel(model.library, model.params, model.manifest, {}, {}, device=COPYING)
    prompts = [[5, 6, 7], [200], list(range(20))]
    generation = copied.generate_batch(prompts, max_new_tokens=9)
    assert len(list(generation)) == 9 + 9 + 5
    assert generation.token_ids == [reference.greedy(prompts[row], count) for row, count in enumerate((9, 9, 5))]


def test_logits_stay_what_they_were_when_the_sequence_goes_on(copied):
    weights = random_weights(12)
    session, reference = Session(copied(*weights)), Reference(*weights)
    first = session.prefill([1, 2])[0]
    second = session.decode(3)
    session.decode(4)
    np.testing.assert_allclose([first, second], reference.logits([1, 2, 3])[1:], atol=1e-5)


def test_weights_are_moved_by_the_first_call_and_can_still_be_saved(copied, tiny, tmp_path):
    table, history = random_weights(13)
    model = copied(table, history)
    before = set(model.weight_addresses)
    assert model.weight_bytes == sum(model.weight_addresses.values()) == table.nbytes + history.nbytes
    model([1])
    assert not before & set(model.weight_addresses)
    np.testing.assert_array_equal(model.params["table"], table)
    model = CompiledModel(model.library, model.params, model.manifest, tiny(table, history).report, {}, device=COPYING)
    model.prepare()
    model.save(tmp_path / "saved")
    np.testing.assert_array_equal(hwpq_tvm.load(tmp_path / "saved").params["history"], history)


class Queue:
    """The runtime, but copies are made no earlier than they are waited for, as those of a GPU may be."""

    def __init__(self):
        self._ffi = runtime()
        self._copies = []

    def __getattr__(self, name):
        return getattr(self._ffi, name)

    def get_global_func(self, name):
        function = self._ffi.get_global_func(name)
        if name == "runtime.TVMTensorCopyFromTo":
            return lambda *tensors: self._copies.append((function, tensors))
        return self._wait if name == "runtime.Device_StreamSync" else function

    def _wait(self, device, stream):
        assert stream == 0
        for function, tensors in self._copies:
            function(*tensors)
        self._copies.clear()


def test_copies_are_waited_for(copied, monkeypatch):
    queue = Queue()
    monkeypatch.setattr(module, "runtime", lambda: queue)
    array = np.random.default_rng().integers(1, 100, 9)
    tensor = COPYING.from_host(array)
    before = array.copy()
    array[...] = 0
    np.testing.assert_array_equal(COPYING.to_host(tensor), before)
    value = Input(COPYING, (1,), "int32")
    value.set(5)
    assert as_array(value.tensor) == [5]
    weights = random_weights(16)
    assert list(copied(*weights).generate([8, 9], max_new_tokens=7)) == Reference(*weights).greedy([8, 9], 7)


@pytest.mark.parametrize("shape", [(5, 13), (64,)])
def test_zeros_arrive_in_parts(monkeypatch, shape):
    def used(self, shape, dtype):
        tensor = empty(self, shape, dtype)
        as_array(tensor)[...] = 7
        return tensor

    empty = Device._empty
    monkeypatch.setattr(Device, "_empty", used)
    monkeypatch.setattr(module, "_ZEROS", 64)
    found = COPYING.to_host(COPYING.zeros(shape, "float32"))
    assert (found.shape, found.dtype) == (shape, np.float32)
    assert not found.any()


def test_kernels_run_on_the_stream_of_the_copies(copied):
    ffi, device = runtime(), runtime().device("cpu", 0)
    model, streams = copied(*random_weights(17)), []
    model.prepare()
    model.machine.instrument(ffi.convert(lambda *arguments: streams.append(ffi.get_raw_stream(device))))
    with ffi.use_raw_stream(device, 8):
        model([1, 2])
        assert ffi.get_raw_stream(device) == 8
    assert set(streams) == {0}


FULL = "CUDA Runtime Error: cudaErrorMemoryAllocation (2): out of memory"


def fails(message):
    def call(*arguments):
        raise RuntimeError(message)

    return call


def test_a_device_without_room_is_named(copied, monkeypatch):
    model = copied(*random_weights(14))
    monkeypatch.setattr(Device, "_empty", fails(FULL + "\nmore of it"))
    with pytest.raises(TargetError, match=r"^cpu has no memory left for the weights \(1 MB\): CUDA .*memory\. Free"):
        model.prepare()
    monkeypatch.undo()
    model.prepare()
    monkeypatch.setattr(Device, "zeros", fails("std::bad_alloc"))
    with pytest.raises(TargetError, match=r"^the host has no memory left for the KV cache \(0 MB\): std::bad_alloc\."):
        Session(model)
    monkeypatch.undo()
    session = Session(model)
    monkeypatch.setitem(model._entries, "decode", fails("CUDAError: CUDA_ERROR_OUT_OF_MEMORY"))
    with pytest.raises(TargetError, match="no memory left for the tensors that decode computes: CUDAError"):
        session.decode(3)
    assert session.prefill([1]).any()


def test_the_host_may_be_what_is_full():
    with (
        pytest.raises(TargetError, match=r"^the host has no memory left for it: MemoryError\."),
        COPYING.room_for("it"),
    ):
        raise MemoryError


def test_other_errors_of_a_device_stay_what_they_are(copied, monkeypatch):
    model = copied(*random_weights(18))
    monkeypatch.setattr(Device, "_empty", fails("CUDA: illegal address"))
    with pytest.raises(RuntimeError, match=r"^CUDA: illegal address$"):
        model.prepare()
    monkeypatch.undo()
    assert model([1]).any()


def test_calls_are_recorded_and_timed_where_the_host_sees_no_tensor(copied, monkeypatch):
    waited = []
    monkeypatch.setattr(Device, "synchronize", lambda self: waited.append(self))
    model = copied(*random_weights(15))
    session = Session(model)

    def step():
        session.reset()
        session.decode(3)

    calls = recorded(model, step)
    assert [call.part for call in calls if not call.name.startswith("vm.")] == ["attention", "attention"]
    assert not waited
    # Before every reading of the clock: what a GPU was told to do is otherwise not done yet.
    profile(model, step, repeat=1)
    assert len(waited) == 2 * 2 * len(calls)


_AS_CUDA = """
import numpy as np
from hwpq_tvm.runtime.device import Device, Input
from hwpq_tvm.runtime.tvm_runtime import runtime
ffi = runtime()
ffi.register_global_func("device_api.cuda", ffi.get_global_func("device_api.cpu"))
device = Device.parse("cuda:1")
array = np.random.default_rng().integers(-9, 9, (5, 3)).astype(np.int32)
tensor = device.from_host(array)
value = Input(device, (2,), "int64")
value.set(9)
device.synchronize()
print(tensor.device, value.tensor.device, (device.to_host(tensor) == array).all(), device.to_host(value.tensor))
"""


def test_tensors_are_the_gpus_own():
    """The CPU's memory under the GPU's name: all calls go the way that they go on a GPU."""
    command = [sys.executable, "-c", _AS_CUDA]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert result.returncode == 0, result.stderr
    assert result.stdout == "cuda:1 cuda:1 True [9 9]\n"


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(module, "_cuda_runtime_candidates", partial(iter, ["libno-such.so.13"]))
    with pytest.raises(DependencyError, match=r"libcudart\.so\.13\) can't be loaded\. Run: pip install 'hwpq-tvm\["):
        module.load_cuda_runtime.__wrapped__()


@pytest.mark.parametrize("folder", ["lib", "lib64"])
@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_libraries_of_a_toolkit_are_found(tmp_path, monkeypatch, variable, folder):
    (tmp_path / folder).mkdir()
    library = tmp_path / folder / "libcudart.so.13"
    library.touch()
    assert library not in list(module._cuda_runtime_candidates())
    monkeypatch.setenv(variable, str(tmp_path))
    *paths, name = module._cuda_runtime_candidates()
    assert library in paths
    assert name == "libcudart.so.13"


def test_the_manifest_says_where_a_model_runs(tiny):
    manifest = tiny(*random_weights(0)).manifest
    gpu = replace(manifest, target={"kind": "cuda", "arch": "sm_80", "host": {"kind": "llvm", "num-cores": 1}})
    model = CompiledModel("absent.so", dict(zip(("table", "history"), random_weights(0), strict=True)), gpu, {}, {})
    assert str(model.device) == "cuda:0"
    assert model.threads == 1
