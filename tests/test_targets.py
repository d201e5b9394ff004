"""Words for targets."""

import pytest
from tvm.target import Target, codegen

from hwpq_tvm import cpu
from hwpq_tvm.cpu import architecture, host_cores
from hwpq_tvm.errors import TargetError
from hwpq_tvm.targets import check_native, cpu_features, resolve_target


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
        ("gpu", "cpu:x86-64-v4-vnni, cpu:aarch64, or cpu:NAME with a CPU that LLVM knows"),
        ("cpu:cascade-lake", "Did you mean 'cpu:cascadelake'?"),
        ("cpu:i386", "unknown target 'cpu:i386'"),
        ("", "unknown target ''"),
        (None, "target is a NoneType"),
        ("cuda:sm_80", "no CUDA kernels"),
        (Target({"kind": "cuda", "arch": "sm_80"}), "target of kind 'cuda'"),
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
