"""Whole builds for CPUs of more and of fewer features than this one."""

import platform

import numpy as np
import pytest

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme, cpu
from hwpq_tvm.errors import ArtifactError
from tests.tiny_hf import tiny_llama

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
CONFIG = HWPQConfig(default=LayerScheme(metric="magnitude", reconstruct="none"))


def build(target: str) -> hwpq_tvm.CompiledModel:
    return hwpq_tvm.build(tiny_llama(), target, config=CONFIG, calibration=None, max_seq_len=16, progress=False)


def test_a_cpu_without_avx2_gets_portable_kernels_and_the_report_says_so():
    model = build("cpu:x86-64")
    linears = [layer for layer in model.report["layers"] if layer["name"] != "model.embed_tokens"]
    assert len(linears) == 2 * 7 + 1
    for layer in linears:
        assert set(layer["schedule"].values()) == {"portable"}
        assert all(name.startswith("any.") for name in layer["kernel"].values())
    assert [warning for warning in model.report["warnings"] if warning.startswith("15 of 16 layers run on portable")]
    ids = np.arange(3, 12)
    # The same packed weights and the same integer sums: what differs is float32 rounding around them.
    other = build("cpu:x86-64-v3")
    assert not [warning for warning in other.report["warnings"] if "portable" in warning]
    np.testing.assert_allclose(model(ids), other(ids), rtol=1e-3, atol=1e-4)


def test_an_artefact_is_refused_where_its_dot_product_is_missing(tmp_path, monkeypatch):
    build("cpu:x86-64-v4-vnni").save(tmp_path / "model")
    flags = sorted(set(cpu._X86.values()) - {"avx512_vnni"})
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {' '.join(flags)}\n")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(ArtifactError, match=r"built for a CPU with avx512vnni, which this one lacks"):
        hwpq_tvm.load(tmp_path / "model")
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {' '.join(flags)} avx512_vnni\n")
    assert hwpq_tvm.load(tmp_path / "model").report["layers"][1]["schedule"]["decode"] == "default"
