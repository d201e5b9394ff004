"""nvcc: found, asked, and what it makes read back with NVIDIA's own tools."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hwpq_tvm import cuda_toolkit
from hwpq_tvm.cuda_toolkit import KernelResources, compile_fatbin, find_toolkit, parse_resources
from hwpq_tvm.errors import DependencyError

# A kernel with shared memory, and one whose array of a thread can't be in registers.
SOURCE = """
extern "C" __global__ void __launch_bounds__(64) reverse_kernel(int* x) {
  __shared__ int row[64];
  row[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = row[63 - threadIdx.x];
}
extern "C" __global__ void indexed_kernel(int* x, int n) {
  int kept[200];
  for (int i = 0; i < 200; ++i) kept[i] = x[i];
  for (int i = 0; i < 200; ++i) x[i] = kept[(i * n) % 200];
}
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
extern "C" __global__ void only_hopper_kernel() { asm volatile("wgmma.fence.sync.aligned;"); }
#else
extern "C" __global__ void only_hopper_kernel() {}
#endif
"""


def listed(fatbin, tmp_path, option):
    """What cuobjdump finds in a fat binary."""
    file = tmp_path / "code.fatbin"
    file.write_bytes(fatbin.code)
    command = [find_toolkit().tool("cuobjdump"), option, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize(("architecture", "ptx"), [("sm_80", "sm_80"), ("sm_89", "sm_89"), ("sm_90a", "sm_90")])
def test_a_binary_for_one_architecture_and_ptx_for_newer_ones(tmp_path, architecture, ptx):
    fatbin = compile_fatbin(SOURCE, architecture)
    assert re.findall(r"sm_\w+(?=\.cubin)", listed(fatbin, tmp_path, "--list-elf")) == [architecture]
    assert re.findall(r"sm_\w+(?=\.ptx)", listed(fatbin, tmp_path, "--list-ptx")) == [ptx]
    text = listed(fatbin, tmp_path, "--dump-ptx")
    assert re.search(r"\.target (\w+)", text)[1] == ptx == fatbin.ptx_architecture
    # What only the one architecture has is in its binary, and not in what later ones compile.
    assert "wgmma" not in text
    assert ("WARPGROUP" in listed(fatbin, tmp_path, "--dump-sass")) == (architecture == "sm_90a")
    assert fatbin.cuda_version == find_toolkit().version
    assert fatbin.facts()["bytes"] == len(fatbin.code)


@pytest.mark.usefixtures("nvcc")
def test_ptxas_tells_what_a_kernel_takes():
    kernels = {kernel.name: kernel for kernel in compile_fatbin(SOURCE, "sm_80").kernels}
    assert list(kernels) == ["indexed_kernel", "only_hopper_kernel", "reverse_kernel"]
    assert kernels["reverse_kernel"].shared_bytes == 4 * 64
    assert not kernels["reverse_kernel"].spills
    assert kernels["indexed_kernel"].stack_bytes == 4 * 200
    assert kernels["indexed_kernel"].spills
    assert all(kernel.registers > 0 for kernel in kernels.values())


def test_kernels_that_spill_get_a_blocks_registers():
    source = "void __launch_bounds__(128) a_kernel(int*);\nvoid __launch_bounds__(64) a_kernel_1(int*);\n"
    assert cuda_toolkit._one_block(source, []) == source
    relaxed = source.replace("(128) a_kernel(", "(128, 1) a_kernel(")
    assert cuda_toolkit._one_block(source, ["a_kernel", "absent"]) == relaxed != source


@pytest.mark.usefixtures("nvcc")
def test_no_register_is_kept_in_memory_for_the_sake_of_more_blocks(monkeypatch):
    """The first kernel says that it spills; whether it does then depends on how often it was compiled."""
    compiled = []
    usual = cuda_toolkit._compile

    def compile_and_spill(toolkit, source, options):
        code, kernels = usual(toolkit, source, options)
        compiled.append(source)
        return code, tuple(replace(kernel, stack_bytes=8 * (len(compiled) == 1)) for kernel in kernels)

    monkeypatch.setattr(cuda_toolkit, "_compile", compile_and_spill)
    fatbin = compile_fatbin('extern "C" __global__ void __launch_bounds__(64) a_kernel(int* x) { x[0] = 1; }', "sm_80")
    assert [source.count("(64, 1)") for source in compiled] == [0, 1]
    assert not fatbin.kernels[0].spills


@pytest.mark.usefixtures("nvcc")
def test_the_compilers_own_words_are_in_the_error():
    with pytest.raises(RuntimeError, match=r'kernels.cu\(2\): error: identifier "undefined_name" is undefined'):
        compile_fatbin('extern "C" __global__ void k(int* x)\n{ x[0] = undefined_name; }', "sm_80")
    with pytest.raises(RuntimeError, match="can't compile the generated kernels"):
        compile_fatbin('extern "C" __global__ void k() { asm volatile("wgmma.fence.sync.aligned;"); }', "sm_80")


def test_what_ptxas_prints_is_read():
    text = """
ptxas info    : 8 bytes gmem, 96 bytes cmem[3]
ptxas info    : Compiling entry function 'a_kernel' for 'sm_90a'
ptxas info    : Function properties for a_kernel
    1320 bytes stack frame, 1420 bytes spill stores, 1352 bytes spill loads
ptxas info    : Used 255 registers, used 3 barriers, 1320 bytes cumulative stack size, 2048 bytes smem, 9 bytes cmem[0]
ptxas info    : Compile time = 13.076 ms
ptxas info    : Function properties for helper
    16 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function 'b_kernel' for 'sm_90a'
ptxas info    : Function properties for b_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for helper
    16 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 376 bytes cmem[0]
"""
    assert parse_resources(text) == (
        KernelResources("a_kernel", 255, 2048, 1320, 1420, 1352),
        KernelResources("b_kernel", 12, 0, 0, 0, 0),
    )


@pytest.fixture
def only_in(tmp_path, monkeypatch):
    """Function (version of CUDA) -> folder with an nvcc that says it is of that version, the only one there is."""

    def install(release):
        folder = tmp_path / "toolkit" / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        nvcc = folder / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V1'\n")
        nvcc.chmod(0o755)
        return folder

    monkeypatch.setattr(cuda_toolkit.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    usual = cuda_toolkit.toolkit_folders
    monkeypatch.setattr(
        cuda_toolkit, "toolkit_folders", lambda: (folder for folder in usual() if tmp_path in Path(folder).parents)
    )
    find_toolkit.cache_clear()
    yield install
    find_toolkit.cache_clear()


def test_a_toolkit_is_found_by_cuda_home_and_by_path(only_in, monkeypatch):
    folder = only_in("12.9")
    monkeypatch.setenv("CUDA_HOME", str(folder.parent))
    assert (find_toolkit().folder, find_toolkit().version) == (folder, (12, 9))
    find_toolkit.cache_clear()
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"] + os.pathsep + "/bin")
    assert find_toolkit().folder == folder
    with pytest.raises(DependencyError, match=r"nvdisasm is not beside .*nvcc\. Run: pip install 'hwpq-tvm\[cuda\]'"):
        find_toolkit().tool("nvdisasm")


def test_without_nvcc_the_error_says_what_to_install(only_in):
    with pytest.raises(DependencyError, match=r"12\.5 or newer .* nvcc was not found\. Run: pip install 'hwpq-tvm\["):
        find_toolkit()


def test_an_old_nvcc_is_named_with_its_version(only_in, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(only_in("11.8").parent))
    monkeypatch.setenv("PATH", "/bin")
    with pytest.raises(DependencyError, match=r"nvcc is of CUDA 11\.8\. Run: pip install"):
        find_toolkit()


@pytest.mark.usefixtures("nvcc")
def test_the_host_compiler_is_asked_for(monkeypatch):
    monkeypatch.setenv("NVCC_CCBIN", "no-such-compiler")
    with pytest.raises(DependencyError, match=r"needs a C\+\+ compiler"):
        compile_fatbin(SOURCE, "sm_80")
