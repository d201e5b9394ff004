"""`build` and `plan` around the phases: dumps, dry runs, what is refused before any work."""

import dataclasses
from itertools import product

import numpy as np
import pytest

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme, calibration, compiler, compression, cuda_toolkit, layer_report
from hwpq_tvm.errors import ConfigError, DependencyError, HwpqError, ImportModelError, PlanError, TargetError
from hwpq_tvm.importers import converted_checkpoint, sources
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.linear_workload import BUCKETS, LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning import logs
from hwpq_tvm.tuning.database import Database
from hwpq_tvm.tuning.device_info import this_device
from tests.tiny_hf import save, tiny_llama, tiny_qwen2


def test_every_phase_can_be_dumped(tmp_path):
    model = hwpq_tvm.build(
        tiny_qwen2(), "cpu", calibration=None, max_seq_len=16, debug_dump=tmp_path / "dump", progress=False
    )
    names = [path.stem.split("_", 1)[1] for path in sorted((tmp_path / "dump").iterdir())]
    assert names == [
        "import",
        "transform",
        *(f"transform_{phase}" for phase in ("optimise", "schedule", "lower")),
        "compress",
        "optimise",
        "schedule",
        "lower",
    ]
    texts = {path.stem.split("_", 1)[1]: path.read_text() for path in (tmp_path / "dump").iterdir()}
    assert "R.matmul" in texts["import"]
    assert "R.matmul" not in texts["compress"]
    assert "def transform_params" in texts["transform"]
    assert "transform_params" not in texts["optimise"]
    assert set(model.report["seconds"]) == {"import", "plan", "compress", "compile"}
    assert np.isfinite(model(np.arange(9))).all()


def test_a_plan_reads_no_weights(tmp_path, monkeypatch):
    folder = save(tiny_llama(), tmp_path / "model")
    for source in (converted_checkpoint.ConvertedCheckpoint, sources.ModelParameters):
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
        (None, {"memory_budget": -1}, ConfigError, "memory_budget=-1"),
        ("nowhere", {}, HwpqError, "nowhere"),
        ("nowhere", {"target": "cuda:sm_70"}, TargetError, "kernels exist for"),
        ("nowhere", {"target": "abacus"}, TargetError, "unknown target 'abacus'"),
        (None, {"config": HWPQConfig(ignore=["lm_haed"])}, ConfigError, "matches no linear layer"),
        (None, {"max_seq_len": 65}, HwpqError, "max_seq_len"),
        (None, {"max_batch": 0}, HwpqError, "max_batch is 0: expected at least 1"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(model, options, kind, words, tmp_path):
    with pytest.raises(kind) as error:
        hwpq_tvm.build(
            model or tiny_llama(), **{"target": "cpu", "max_seq_len": 16, **options}, work_dir=tmp_path / "work"
        )
    assert words in str(error.value)
    assert not (tmp_path / "work").exists()


def test_without_nvcc_or_what_it_needs_nothing_is_built_for_gpus(monkeypatch):
    def missing():
        raise DependencyError("nvcc was not found")

    with monkeypatch.context() as patch:
        patch.setattr(cuda_toolkit, "find_toolkit", missing)
        with pytest.raises(DependencyError, match="nvcc was not found"):
            hwpq_tvm.build("nowhere", "cuda:sm_80")
    monkeypatch.setattr(cuda_toolkit, "find_toolkit", lambda: None)
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DependencyError, match=r"nvcc needs a C\+\+ compiler, and g\+\+ was not found"):
        hwpq_tvm.build("nowhere", "cuda:sm_80")
    with pytest.raises(ImportModelError):  # CPUs do without
        hwpq_tvm.build("nowhere", "cpu")


@pytest.mark.parametrize(
    ("target", "words"), [("cpu:x86-64", "is written for the CPU of this target"), ("cuda:sm_80", "uses tensor cores")]
)
def test_the_report_says_what_the_format_of_slow_layers_lacks(target, words):
    layers = [
        {"schedule": {"prefill": quality, "decode": "default"}} for quality in ("portable", "tuned", "portable, tuned")
    ]
    (warning,) = layer_report._portable(layers, resolve_target(target))
    assert warning.startswith("2 of 3 layers run on portable kernels")
    assert warning.endswith(f"their format has none that {words}")


def test_all_layers_that_cannot_have_their_scheme_are_named_at_once():
    config = HWPQConfig(default=LayerScheme(sparsity=None, dtype="int4"))
    with pytest.raises(PlanError) as error:
        compiler.plan(tiny_llama(), "cpu", config=config, max_seq_len=16)
    assert len(str(error.value).splitlines()) == 14
    assert "layer model.layers.1.mlp.down_proj [36, 44]: in_features 44 is not divisible by group_size 64" in str(
        error.value
    )


INT8 = HWPQConfig(default=LayerScheme(reconstruct="none"))
TOKENS = np.random.default_rng(0).integers(0, 100, (3, 16))


def test_a_build_that_was_stopped_goes_on_with_its_layers(tmp_path, monkeypatch):
    """Stopped after calibration and compression: neither is done again, and the model is the same."""
    options = {"target": "cpu", "calibration": TOKENS, "max_seq_len": 16, "config": INT8, "progress": False}
    model = tiny_llama()

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compile_module", stop)
        with pytest.raises(KeyboardInterrupt):
            hwpq_tvm.build(model, work_dir=tmp_path / "work", **options)
    assert len(list((tmp_path / "work" / "layers").glob("*.safetensors"))) == 2 + 2 * 4
    with pytest.raises(ConfigError, match="another calibration, configuration, so it can't be resumed"):
        hwpq_tvm.build(
            model, work_dir=tmp_path / "work", resume=True, **{**options, "calibration": None, "config": HWPQConfig()}
        )
    for work in ("observe", "compress_groups"):
        monkeypatch.setattr(f"hwpq_tvm.stages.{work}", lambda *_, **__: pytest.fail("done again"))
    resumed = hwpq_tvm.build(model, work_dir=tmp_path / "work", resume=True, **options)
    assert resumed.report["resumed_groups"] == 10
    assert resumed.report["calibration"]["tokens"] == TOKENS.size
    monkeypatch.undo()
    again = hwpq_tvm.build(model, **options)
    assert sorted(resumed.params) == sorted(again.params)
    for name, array in again.params.items():
        np.testing.assert_array_equal(resumed.params[name], array)


def test_sequential_calibration_sees_compressed_layers(monkeypatch):
    """The first part of the model is compressed as ever; what comes later is calibrated on what it hands on."""
    options = {"target": "cpu", "calibration": TOKENS, "max_seq_len": 16, "progress": False}
    configs = (INT8, dataclasses.replace(INT8, sequential=True))
    monkeypatch.setattr("hwpq_tvm.stages.SEQUENTIAL_STAGES", 2)
    usual, sequential = (hwpq_tvm.build(tiny_llama(), config=config, **options) for config in configs)
    first, last = "model.layers.0.self_attn.q_proj+k_proj+v_proj.weight", "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(usual.params[first], sequential.params[first])
    assert (usual.params[last] != sequential.params[last]).any()
    assert sequential.report["calibration"]["sequential"]
    assert sequential.report["calibration"]["passes"] == 2


def test_a_build_calibrates_and_compresses_on_the_threads_it_is_given(monkeypatch):
    counts = []
    for module in (calibration, compression):
        monkeypatch.setattr(module, "use_threads", counts.append)
    config = HWPQConfig(default=LayerScheme(reconstruct="none"))
    model = hwpq_tvm.build(
        tiny_llama(), "cpu", config=config, calibration=TOKENS, max_seq_len=16, threads=1, progress=False
    )
    assert counts == [1, 1]
    assert model.threads == 1


AUTO = HWPQConfig(default=LayerScheme(sparsity="auto"))


def log_times(folder, target, seconds):
    """Write records of every linear of a tiny Llama, both formats, and of its defaults, which take twice as long.

    `seconds(K, M)` gives the time of 2:4; dense always takes 1 s.
    """
    formats = {sparsity: registry.weight_format(sparsity=sparsity, dtype="int8") for sparsity in ("2:4", None)}
    with Database(folder, this_device(target), target, resume=False) as database:
        for out_features, K in [((36, 12, 12), 36), ((36,), 36), ((44, 44), 36), ((36,), 44)]:
            for (sparsity, each), M in product(formats.items(), (1, *BUCKETS)):
                workload = LinearWorkload.of(each.linear((1, M), sum(map(each.rows, out_features)), K))
                points = registry.space(workload, target)
                time = seconds(K, M) if sparsity else 1.0
                for point, slower in ((points[0], 2), (points[-1], 1)):
                    database.commit(workload, point, [slower * time], Evidence.MEASURED)


def test_tuning_logs_choose_formats_and_kernels(tmp_path):
    """What `hwpq tune` measured decides between 2:4 and dense, and about the kernels; the report says all of it."""
    target = resolve_target("cpu")
    log_times(tmp_path / "log", target, lambda K, M: 2.0 if K == 44 or M == 256 else 0.5)
    options = {"calibration": None, "max_seq_len": 16, "progress": False}
    model = hwpq_tvm.build(tiny_llama(), "cpu", config=AUTO, tuning_logs=tmp_path / "log", **options)

    layers = {layer["name"].removeprefix("model.layers.1."): layer for layer in model.report["layers"]}
    down, q = layers["mlp.down_proj"], layers["self_attn.q_proj"]
    assert (down["scheme"], q["scheme"]) == ("dense int8", "2:4 int8")
    assert down["chosen"].startswith("auto chose dense: 130000.00 ms of a request in 2:4, 65000.00 ms dense")
    assert q["rivals"]["1"] == {"sparse24_int8": 5e5, "dense_int8": 1e6}
    assert q["tuned"]["1"] == {"default": 1e6, "tuned": 5e5}
    assert set(q["tuned"]) == {"1", "4", "16", "64", "256"}
    assert q["warnings"] == ["2:4 does not pay at M = 256"]
    assert down["warnings"] == []
    assert q["schedule"] == down["schedule"] == {"prefill": "tuned", "decode": "tuned"}
    assert q["record"] == {"prefill": "log: 4, 16, 64, 256 tokens", "decode": "log: 1 token"}
    assert layers["lm_head"]["schedule"] == {"prefill": "default", "decode": "default"}
    assert layers["lm_head"]["record"] == layers["lm_head"]["rivals"] == layers["lm_head"]["tuned"] == {}
    assert "12 layers at M = 256" in "".join(model.report["warnings"])
    assert model.report["tuning"] == {
        "kernels": 8,
        "records": ["log: 1 token", "log: 4, 16, 64, 256 tokens"],
        "ignored": [],
    }
    planned = compiler.plan(
        tiny_llama(), "cpu", config=AUTO, calibration=None, max_seq_len=16, tuning_logs=str(tmp_path / "log")
    )
    for name in ("scheme", "chosen", "rivals"):
        assert [layer[name] for layer in planned["layers"]] == [layer[name] for layer in model.report["layers"]]
    assert np.isfinite(model(np.arange(9))).all()


def test_tests_see_no_records_that_ship(shipped_records):
    assert shipped_records.is_dir()
    assert not logs.SHIPPED.exists()


def test_tuning_logs_of_other_threads_are_refused(tmp_path):
    log_times(tmp_path / "log", resolve_target("cpu", threads=7), lambda K, M: 1.0)
    with pytest.raises(ConfigError, match=r"nothing there fits the target .* 7 threads"):
        compiler.plan(tiny_llama(), "cpu", max_seq_len=16, threads=1, tuning_logs=tmp_path / "log")
    with pytest.raises(ConfigError, match="no database is there"):
        compiler.plan(tiny_llama(), "cpu", max_seq_len=16, tuning_logs=tmp_path / "elsewhere")
