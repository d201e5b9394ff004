import platform

import pytest

from hwpq_tvm import cpu


@pytest.mark.skipif(platform.system() != "Linux", reason="/proc/cpuinfo is Linux's")
def test_this_machine_has_what_llvm_says_it_has():
    from tvm.target import Target, codegen

    target = Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()})
    assert cpu.missing_features(map(str, codegen.llvm_get_cpu_features(target))) == ()


@pytest.mark.parametrize(
    ("architecture", "flags", "required", "missing"),
    [
        ("x86_64", {"avx2", "fma"}, ["avx2", "fma"], ()),
        ("x86_64", {"avx2", "avx512f"}, ["avx512vnni", "avx2", "sse4.1"], ("avx512vnni", "sse4.1")),
        ("x86_64", {"sse4_1", "avx512_vnni"}, ["avx512vnni", "sse4.1", "cmov", "waitpkg"], ()),
        ("aarch64", {"asimd"}, ["neon", "dotprod"], ("dotprod",)),
        ("riscv64", {"v"}, ["avx2"], ()),
    ],
)
def test_missing_features(monkeypatch, architecture, flags, required, missing):
    monkeypatch.setattr(cpu, "architecture", lambda: architecture)
    monkeypatch.setattr(cpu, "_kernel_flags", lambda: frozenset(flags))
    assert cpu.missing_features(required) == missing


@pytest.mark.parametrize(
    ("architecture", "text", "required", "missing"),
    [
        ("x86_64", "processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t: spectre_v1\n", "avx512vnni", ("avx512vnni",)),
        ("x86_64", "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", "avx512vnni", ()),
        ("aarch64", "processor\t: 0\nFeatures\t: fp asimd crc32\nCPU part\t: 0xd08\n", "dotprod", ("dotprod",)),
        ("aarch64", "processor\t: 0\nFeatures\t: fp asimd crc32 asimddp\n", "dotprod", ()),
        ("x86_64", "processor\t: 0\n", "avx512vnni", ()),
    ],
)
def test_features_are_read_from_the_kernel(monkeypatch, tmp_path, architecture, text, required, missing):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "architecture", lambda: architecture)
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    assert cpu.missing_features([required]) == missing


def test_what_this_cpu_has_goes_by_names_of_llvm(monkeypatch):
    monkeypatch.setattr(cpu, "architecture", lambda: "x86_64")
    monkeypatch.setattr(cpu, "_kernel_flags", lambda: frozenset({"fpu", "avx2", "avx512_vnni", "amx_int8"}))
    assert cpu.found_features() == {"avx2", "avx512vnni", "amx-int8"}


def test_nothing_is_missing_where_nobody_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "absent")
    assert cpu.found_features() == frozenset()
    assert cpu.missing_features(["avx512vnni", "dotprod"]) == ()


def test_architecture_of_a_library(tmp_path, tiny_library):
    assert cpu.library_architecture(tiny_library) == cpu.architecture()
    header = bytearray(tiny_library.read_bytes()[:64])
    header[18:20] = (183).to_bytes(2, "little")
    (tmp_path / "arm.so").write_bytes(header)
    assert cpu.library_architecture(tmp_path / "arm.so") == "aarch64"
    (tmp_path / "text").write_text("no library")
    assert cpu.library_architecture(tmp_path / "text") is None
