"""Device code in exported libraries: compiled, for the architecture and for later ones, and no source beside it."""

import os
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import tvm
import tvm_ffi
from library_modules import library_modules
from tvm import relax
from tvm.s_tir import dlight
from tvm.script import relax as R

from hwpq_tvm import device_code
from hwpq_tvm.cuda_toolkit import find_toolkit
from hwpq_tvm.device_code import CudaModule, build_library, read_modules
from hwpq_tvm.relax_passes.pipeline import lower, optimise
from hwpq_tvm.targets import host_target, resolve_target


def lowered(target: tvm.target.Target, *, name: str = "main") -> tvm.IRModule:
    """``(a @ b + 1, a @ b)`` with rows known at run time only, and a sum, on TVM's own schedules."""
    rows = tvm.tirx.Var("rows", "int64")
    a, b = relax.Var("a", R.Tensor((rows, 24), "float32")), relax.Var("b", R.Tensor((24, 7), "float32"))
    builder = relax.BlockBuilder()
    with builder.function(name, [a, b], attrs={"num_input": 1}):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(a, b))
            flat = builder.emit(relax.op.reshape(relax.op.add(product, relax.const(1.0)), (rows * 7,)))
            results = builder.emit_output(relax.Tuple([flat, product, relax.op.sum(b, axis=0)]))
        builder.emit_func_output(results)
    with target:
        mod = optimise(builder.get())
        if target.kind.name == "cuda":
            rules = (dlight.gpu.Matmul(), dlight.gpu.Reduction(), dlight.gpu.Fallback())
            mod = dlight.ApplyDefaultSchedule(*rules)(mod)
        return lower(mod)


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize(("architecture", "ptx"), [("sm_86", "sm_86"), ("sm_90a", "sm_90")])
def test_a_library_holds_a_binary_and_ptx_and_no_source(tmp_path, architecture, ptx):
    target, library = resolve_target(f"cuda:{architecture}"), tmp_path / "model.so"
    fatbin = build_library(lowered(target), target, library)
    modules = library_modules(library)
    # The virtual machine's bytecode, which imports the host code, which imports the kernels.
    assert list(modules) == ["relax.VMExecutable", "_lib", "cuda"]
    cuda = CudaModule.from_bytes(modules["cuda"])
    assert cuda.format == "cubin"
    assert cuda.code == fatbin.code
    assert sorted(cuda.names) == [kernel.name for kernel in fatbin.kernels]
    assert len(cuda.names) >= 3
    assert b"__global__" not in library.read_bytes()
    (tmp_path / "code.fatbin").write_bytes(cuda.code)
    command = [find_toolkit().tool("cuobjdump"), "--list-elf", "--list-ptx", tmp_path / "code.fatbin"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f".{architecture}.cubin" in listed
    assert f".{ptx}.ptx" in listed
    command = [find_toolkit().tool("cuobjdump"), "--dump-sass", tmp_path / "code.fatbin"]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in cuda.names:
        assert f"Function : {name}\n" in assembly


@pytest.mark.usefixtures("nvcc")
def test_the_host_code_is_this_machines(tmp_path):
    target = resolve_target("cuda:sm_80")
    executable = relax.build(lowered(target), target, relax_pipeline=None)
    (host,) = executable.mod.imports
    assert host.kind == "llvm"
    # Sizes of tensors are computed there, and kernels started from there; on the GPU there are kernels only.
    assert "shape_func" in host.inspect_source("ll")
    assert "shape_func" not in host.imports[0].inspect_source("cuda")


@pytest.mark.usefixtures("nvcc")
def test_what_tvm_does_elsewhere_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_COMPILE_FORCE_FALLBACK", "0")
    before = tvm_ffi.get_global_func("codegen.codegen_blob")
    target = resolve_target("cuda:sm_80")
    monkeypatch.setattr(device_code, "compile_fatbin", lambda source, architecture: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_library(lowered(target), target, tmp_path / "model.so")
    assert os.environ["TVM_COMPILE_FORCE_FALLBACK"] == "0"
    # TVM's own export holds the source.
    relax.build(lowered(target), target, relax_pipeline=None).export_library(str(tmp_path / "plain.so"))
    assert CudaModule.from_bytes(library_modules(tmp_path / "plain.so")["cuda"]).format == "cuda"
    assert before.same_as(tvm_ffi.get_global_func("codegen.codegen_blob"))


@pytest.mark.usefixtures("nvcc")
def test_code_of_other_kernels_is_not_taken(tmp_path, monkeypatch):
    usual = device_code.compile_fatbin

    def one_less(source, architecture):
        fatbin = usual(source, architecture)
        return replace(fatbin, kernels=fatbin.kernels[1:])

    monkeypatch.setattr(device_code, "compile_fatbin", one_less)
    target = resolve_target("cuda:sm_80")
    with pytest.raises(Exception, match=r"compiled \['.*expected \['"):
        build_library(lowered(target), target, tmp_path / "model.so")


@pytest.mark.usefixtures("nvcc")
def test_libraries_that_are_built_at_once_hold_their_own_code(tmp_path, monkeypatch):
    usual, both_compiled = device_code.compile_fatbin, threading.Barrier(2)

    def marked(source, architecture):
        fatbin = usual(source, architecture)
        number = both_compiled.wait(timeout=60)
        return replace(fatbin, code=fatbin.code + bytes([number]))

    monkeypatch.setattr(device_code, "compile_fatbin", marked)
    target, before = resolve_target("cuda:sm_80"), tvm_ffi.get_global_func("codegen.codegen_blob")
    modules = {name: lowered(target) for name in ("a.so", "b.so")}
    with ThreadPoolExecutor() as threads:
        built = {name: threads.submit(build_library, mod, target, tmp_path / name) for name, mod in modules.items()}
    codes = {name: fatbin.result().code for name, fatbin in built.items()}
    assert codes["a.so"] != codes["b.so"]
    for name, code in codes.items():
        assert CudaModule.from_bytes(library_modules(tmp_path / name)["cuda"]).code == code
    assert before.same_as(tvm_ffi.get_global_func("codegen.codegen_blob"))


def test_a_library_for_cpus_runs(tmp_path):
    target = host_target()
    assert build_library(lowered(target), target, tmp_path / "model.so") is None
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "model.so")), tvm.cpu())
    random = np.random.default_rng()
    a, b = random.standard_normal((5, 24), np.float32), random.standard_normal((24, 7), np.float32)
    flat, product, total = (each.numpy() for each in machine["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b)))
    np.testing.assert_allclose(product, a @ b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flat, (a @ b + 1).ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total, b.sum(0), rtol=1e-4, atol=1e-5)


def test_bytes_of_another_form_are_refused():
    def text(content):
        return struct.pack("<Q", len(content)) + content

    table = struct.pack("<Q", 1) + text(b"k_kernel") * 2 + struct.pack("<Q", 1) + b"\x00\x20\x01\x00" + bytes(16)
    content = text(b"cuda") + table + text(b"source")
    module = CudaModule.from_bytes(content)
    assert (module.format, module.names, module.code) == ("cuda", ("k_kernel",), b"source")
    assert module.to_bytes() == content
    with pytest.raises(ValueError, match="goes on after its code"):
        CudaModule.from_bytes(content + b"x")
    with pytest.raises(ValueError, match="ends too early"):
        CudaModule.from_bytes(content[:-1])
    body = struct.pack("<QQQQ", 2, 0, 0, 0) + text(b"cuda") + text(content)
    assert read_modules(struct.pack("<Q", len(body)) + body) == [("cuda", content)]
    with pytest.raises(ValueError, match="not a block of modules"):
        read_modules(struct.pack("<Q", len(body) + 1) + body)
