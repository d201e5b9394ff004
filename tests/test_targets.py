"""Words for targets."""

import pytest
from tvm.target import Target, codegen

from hwpq_tvm import cpu, targets
from hwpq_tvm.cpu import architecture, host_cores
from hwpq_tvm.errors import TargetError
from hwpq_tvm.gpu import GPU, Driver
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES
from hwpq_tvm.targets import best_architecture, check_native, cpu_features, cpu_part, resolve_target


def test_cpu_is_this_machine():
    target = resolve_target("cpu")
    assert target.kind.name == "llvm"
    assert target.attrs["num-cores"] == host_cores()


def test_threads_set_the_cores():
    assert resolve_target("cpu", threads=3).attrs["num-cores"] == 3


def test_levels_have_their_features():
    assert {"avx2", "fma"} <= cpu_features(resolve_target("cpu:x86-64-v3"))
    assert "avx2" not in cpu_features(resolve_target("cpu:x86-64-v2"))
    assert "avx512f" in cpu_features(resolve_target("cpu:x86-64-v4"))
    assert "avx512vnni" not in cpu_features(resolve_target("cpu:x86-64-v4"))
    assert {"avx512bw", "avx512vnni"} <= cpu_features(resolve_target("cpu:x86-64-v4-vnni"))
    assert "dotprod" in cpu_features(resolve_target("cpu:aarch64"))


def test_a_cpu_can_be_named_as_llvm_names_it():
    assert "avx512vnni" in cpu_features(resolve_target("cpu:cascadelake"))
    assert "avx512vnni" not in cpu_features(resolve_target("cpu:skylake-avx512"))
    assert resolve_target("cpu:znver4").attrs["mtriple"] == "x86_64-linux-gnu"
    assert "dotprod" in cpu_features(resolve_target("cpu:neoverse-n1"))
    assert "dotprod" not in cpu_features(resolve_target("cpu:cortex-a72"))
    assert resolve_target("cpu:cortex-a72").attrs["mtriple"] == "aarch64-linux-gnu"
    assert str(resolve_target("cpu:generic").attrs["mtriple"]).startswith(architecture())


@pytest.mark.skipif(architecture() != "x86_64", reason="flags of x86")
def test_what_a_hypervisor_hides_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: "icelake-server")
    names = {*cpu._X86.values()} - {"avx512_vnni", "avx512f"}
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu sse2 {' '.join(sorted(names))}\n")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    features = cpu_features(resolve_target("cpu"))
    assert {"avx2", "fma"} <= features
    # What builds on avx512f is gone with it.
    assert not [feature for feature in features if feature.startswith("avx512")]
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu sse2\n")
    assert not {"ssse3", "avx", "avx2", "fma"} & cpu_features(resolve_target("cpu"))
    assert "sse2" in cpu_features(resolve_target("cpu"))


def test_a_target_is_taken_as_it_is():
    given = Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 5})
    assert resolve_target(given).export() == given.export()
    assert resolve_target(Target({"kind": "llvm", "mcpu": "x86-64-v3"}), threads=2).attrs["num-cores"] == 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cpu:x86-64-v33", "Did you mean 'cpu:x86-64-v3'?"),
        ("gpu", "expected one of cpu, cpu:x86-64"),
        (
            "gpu",
            "cpu:aarch64, cuda, cuda:sm_80, cuda:sm_86, cuda:sm_89, cuda:sm_90a, cpu:NAME with a CPU that LLVM",
        ),
        ("cpu:cascade-lake", "Did you mean 'cpu:cascadelake'?"),
        ("cpu:i386", "unknown target 'cpu:i386'"),
        ("", "unknown target ''"),
        (None, "target is a NoneType"),
        ("cuda:sm_75", 'CUDA architecture sm_75: kernels exist for "cuda:sm_80", "cuda:sm_86", "cuda:sm_89"'),
        ("cuda:0", "CUDA architecture 0: kernels exist for"),
        ("cuda:", "CUDA architecture (none)"),
        ("nvidia/nvidia-a1000", "Did you mean 'nvidia/nvidia-a100'?"),
        ("nvidia/jetson-agx-orin-64gb", "CUDA architecture sm_87"),
        (Target({"kind": "cuda", "arch": "sm_100"}), 'Newer GPUs run what is built for "cuda:sm_89"'),
        (Target({"kind": "opencl"}), "target of kind 'opencl'"),
    ],
)
def test_what_is_unknown_is_refused(word, message):
    with pytest.raises(TargetError) as error:
        resolve_target(word)
    assert message in str(error.value)


def test_threads_overrule_a_given_target():
    given = Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 8})
    assert resolve_target(given, threads=2).attrs["num-cores"] == 2


def test_nothing_is_built_for_another_architecture():
    check_native(resolve_target("cpu"))
    other = "cpu:aarch64" if architecture() == "x86_64" else "cpu:x86-64-v3"
    with pytest.raises(TargetError, match="not cross-compiled"):
        check_native(resolve_target(other))


def test_threads_have_to_be_positive():
    with pytest.raises(TargetError, match="threads=0"):
        resolve_target("cpu", threads=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gpu_has_the_limits_of_its_architecture_and_any_cpu_as_host(name):
    target = resolve_target(f"cuda:{name}", threads=3)
    assert target.kind.name == "cuda"
    assert target.attrs["arch"] == name
    assert target.attrs["max_shared_memory_per_block"] == ARCHITECTURES[name].shared_memory_per_block
    assert (target.attrs["max_threads_per_block"], target.attrs["thread_warp_size"]) == (1024, 32)
    assert cpu_part(target).attrs["num-cores"] == 3
    check_native(target)
    assert resolve_target(target).export() == target.export()
    assert Target(target.export()).export() == target.export()  # as it comes back from a manifest


@pytest.mark.parametrize("word", ["cuda:sm_86", "nvidia/nvidia-a100", Target({"kind": "cuda", "arch": "sm_80"})])
@pytest.mark.parametrize(("machine", "mcpu"), [("x86_64", "x86-64"), ("aarch64", "generic")])
def test_a_named_gpu_runs_beside_any_cpu(monkeypatch, word, machine, mcpu):
    monkeypatch.setattr(targets, "architecture", lambda: machine)
    assert cpu_part(resolve_target(word)).attrs["mcpu"] == mcpu


@pytest.mark.skipif(architecture() != "x86_64", reason="flags of x86")
def test_the_host_of_a_named_gpu_needs_no_feature_that_some_cpus_lack(monkeypatch):
    monkeypatch.setattr(cpu, "_kernel_flags", lambda: frozenset({"sse2"}))
    assert cpu.missing_features(cpu_features(resolve_target("cuda:sm_80"))) == ()
    assert cpu.missing_features(cpu_features(resolve_target("cpu:x86-64-v2")))


def test_sm_90_means_sm_90a():
    assert resolve_target("cuda:sm_90").export() == resolve_target("cuda:sm_90a").export()


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("nvidia/nvidia-a100", "sm_80"),
        ("nvidia/geforce-rtx-3090", "sm_86"),
        ("nvidia/geforce-rtx-4090", "sm_89"),
        ("nvidia/nvidia-h100", "sm_90a"),
    ],
)
def test_tags_of_tvm_name_gpus(tag, name):
    target = resolve_target(tag)
    assert target.attrs["arch"] == name
    # The tag's own 48 KB is what a kernel may use without asking.
    assert target.attrs["max_shared_memory_per_block"] == ARCHITECTURES[name].shared_memory_per_block


def test_the_host_of_a_given_gpu_is_kept():
    given = Target({"kind": "cuda", "arch": "sm_86", "host": {"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 7}})
    assert cpu_part(resolve_target(given)).attrs["num-cores"] == 7
    assert cpu_part(resolve_target(given, threads=2)).attrs["num-cores"] == 2
    assert "avx512f" not in cpu_features(resolve_target(given))
    other = "aarch64" if architecture() == "x86_64" else "x86_64"
    foreign = Target({"kind": "cuda", "arch": "sm_86", "host": {"kind": "llvm", "mtriple": f"{other}-linux-gnu"}})
    with pytest.raises(TargetError, match="not cross-compiled"):
        check_native(resolve_target(foreign))


def test_cuda_is_the_gpu_of_this_machine(monkeypatch):
    monkeypatch.setattr(targets, "find_gpus", lambda: Driver((13, 0), (GPU(0, "RTX 3090", (8, 6), 24 << 30),), None))
    target = resolve_target("cuda", threads=3)
    assert target.attrs["arch"] == "sm_86"
    assert cpu_part(target).export() == resolve_target("cpu", threads=3).export()
    assert cpu_features(target) == cpu_features(resolve_target("cpu"))
    monkeypatch.setattr(targets, "find_gpus", lambda: Driver((13, 0), (GPU(0, "T4", (7, 5), 16 << 30),), None))
    with pytest.raises(TargetError, match=r"T4 has compute capability 7\.5: kernels need 8\.0"):
        resolve_target("cuda")


def test_without_a_gpu_cuda_says_what_can_be_named(monkeypatch):
    monkeypatch.setattr(targets, "find_gpus", lambda: Driver(None, (), "there is no driver"))
    with pytest.raises(TargetError, match=r'and there is no driver: name .*"cuda:sm_80".*"cuda:sm_90a" \(nvidia/'):
        resolve_target("cuda")


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), None),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((10, 0), "sm_89"),
        ((12, 1), "sm_89"),
    ],
)
def test_every_gpu_gets_what_runs_on_it_best(capability, name):
    assert best_architecture(capability) == name
