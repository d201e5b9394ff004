"""`build` and `plan` around the phases: dumps, dry runs, what is refused before any work."""

import numpy as np
import pytest

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme, compiler
from hwpq_tvm.errors import ConfigError, HwpqError, TargetError
from hwpq_tvm.importers import sources
from tests.tiny_hf import save, tiny_llama, tiny_qwen2


def test_every_phase_can_be_dumped(tmp_path):
    model = hwpq_tvm.build(
        tiny_qwen2(), "cpu", calibration=None, max_seq_len=16, debug_dump=tmp_path / "dump", progress=False
    )
    names = [path.stem.split("_", 1)[1] for path in sorted((tmp_path / "dump").iterdir())]
    assert names == [
        "import",
        "compress",
        *(f"transform_{phase}" for phase in ("optimise", "schedule", "lower")),
        "optimise",
        "schedule",
        "lower",
    ]
    texts = {path.stem.split("_", 1)[1]: path.read_text() for path in (tmp_path / "dump").iterdir()}
    assert "R.matmul" in texts["import"]
    assert "R.matmul" not in texts["compress"]
    assert "def transform_params" in texts["compress"]
    assert "transform_params" not in texts["optimise"]
    assert set(model.report["seconds"]) == {"import", "plan", "compress", "compile"}
    assert np.isfinite(model(np.arange(9))).all()


def test_a_plan_reads_no_weights(tmp_path, monkeypatch):
    folder = save(tiny_llama(), tmp_path / "model")
    for source in (sources.SafetensorsSource, sources.ModelParameters):
        monkeypatch.setattr(source, "load", lambda self, name: pytest.fail(f"{name} was read"))
    report = compiler.plan(str(folder), "cpu", calibration=None, max_seq_len=16)
    names = [layer["name"] for layer in report["layers"]]
    assert names[0] == "model.embed_tokens"
    assert names[-1] == "lm_head"
    assert len(names) == 2 * 7 + 2
    assert report["layers"][1]["scheme"] == "2:4 int8"
    assert report["layers"][1]["kernel"] is None
    assert report["model"]["bits_per_weight"] > 5


@pytest.mark.parametrize(
    ("model", "options", "kind", "words"),
    [
        ("nowhere", {}, HwpqError, "nowhere"),
        ("nowhere", {"target": "cuda"}, TargetError, 'use target="cpu"'),
        ("nowhere", {"target": "abacus"}, TargetError, "unknown target 'abacus'"),
        (None, {"config": HWPQConfig(ignore=["lm_haed"])}, ConfigError, "matches no linear layer"),
        (None, {"max_seq_len": 65}, HwpqError, "max_seq_len"),
        (None, {"max_batch": 3}, HwpqError, "max_batch"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(model, options, kind, words, tmp_path):
    with pytest.raises(kind) as error:
        hwpq_tvm.build(
            model or tiny_llama(), **{"target": "cpu", "max_seq_len": 16, **options}, work_dir=tmp_path / "work"
        )
    assert words in str(error.value)
    assert not (tmp_path / "work").exists()


def test_all_layers_that_cannot_have_their_scheme_are_named_at_once(monkeypatch):
    from hwpq_tvm.errors import PlanError
    from hwpq_tvm.schedules import weight_formats

    monkeypatch.setattr(weight_formats._DenseInt8, "why_not", lambda self, N, K: f"no {N}")
    config = HWPQConfig(default=LayerScheme(sparsity=None))
    with pytest.raises(PlanError) as error:
        compiler.plan(tiny_llama(), "cpu", config=config, max_seq_len=16)
    assert len(str(error.value).splitlines()) == 15
    assert "layer model.layers.1.mlp.down_proj [36, 44]: dense int8 is not possible: no 36" in str(error.value)
