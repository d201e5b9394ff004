import json
import sys

import pytest

from hwpq_tvm.cli import main

PNG = b"\x89PNG\r\n\x1a\n"


def output(capsys, *arguments, code=0):
    assert main.main(["inspect", *map(str, arguments)]) == code
    return capsys.readouterr()


@pytest.fixture
def other_artifact(tiny, tmp_path):
    from tiny_model import random_weights

    tiny(*random_weights(1), hwpq_tvm_version="0.0.9").save(tmp_path / "other")
    return tmp_path / "other"


def test_one_artefact_is_told_with_its_rivals(capsys, tiny_artifact, tmp_path):
    out, err = output(capsys, tiny_artifact, "--json", tmp_path / "r.json")
    assert "weights in other formats (computed): float16 " in out
    assert err == ""
    value = json.loads((tmp_path / "r.json").read_text())
    assert set(value["rival_weight_bytes"]) == {"float16", "dense int8", "dense int4 g64"}
    assert value["summary"][0].startswith("A TinyForCausalLM from tiny (torch), compiled for llvm")
    assert "speeds" not in value


def test_json_on_stdout_is_alone_there(capsys, tiny_artifact):
    assert json.loads(output(capsys, tiny_artifact, "--json", "-").out)["layers"][0]["name"] == "model.up_proj"


def test_two_artefacts_are_compared(capsys, tiny_artifact, other_artifact, tmp_path):
    out = output(capsys, tiny_artifact, other_artifact, "--json", tmp_path / "r.json").out
    assert "settings that differ" in out
    assert "0.0.9" in out
    assert "layers: 0 differ in scheme, size or error (--json and --html name them), 2 don't" in out
    value = json.loads((tmp_path / "r.json").read_text())
    assert set(value["models"]) == {"artifact", "other"}
    assert value["models"]["other"]["layers"][0]["name"] == "model.up_proj"
    assert value["comparison"]["settings"]["hwpq_tvm"] == {"artifact": "0.1.0", "other": "0.0.9"}


def test_what_is_measured_is_everywhere(capsys, tiny_artifact, other_artifact, tmp_path):
    files = ["--html", tmp_path / "r.html", "--png", tmp_path / "png", "--json", tmp_path / "r.json"]
    out, err = output(capsys, tiny_artifact, other_artifact, "--measure", "--threads", "1", *files)
    speeds = json.loads((tmp_path / "r.json").read_text())["speeds"]
    assert speeds["origin"].startswith("measured in this run")
    assert {figures["threads"] for figures in speeds["models"].values()} == {1}
    rate = f"{speeds['models']['other']['decode_tokens_per_second']:.1f}"
    assert rate in out
    assert rate in (tmp_path / "r.html").read_text()
    assert f"wrote {tmp_path / 'r.html'}" in err
    written = {path.name: path.read_bytes() for path in (tmp_path / "png").iterdir()}
    assert {"speed.png", "speed-dark.png", "decode-step.png", "size.png"} <= written.keys()
    assert all(content.startswith(PNG) for content in written.values())


def test_speeds_of_a_benchmark_are_taken(capsys, tiny_artifact, tmp_path):
    bench = ["bench", tiny_artifact, "--prompt-length", "8", "--new-tokens", "2", "--repeat", "1", "--no-bandwidth"]
    assert main.main([*map(str, bench), "--profile", "--json", str(tmp_path / "bench.json")]) == 0
    capsys.readouterr()
    out = output(capsys, tiny_artifact, "--bench", tmp_path / "bench.json").out
    assert "speed of artifact: prefill " in out
    assert "from bench.json" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{artifact}", "{artifact}"], "named twice"),
        (["{artifact}", "{absent}"], "no such folder"),
        (["{artifact}", "--bench", "{absent}"], "can't be read"),
        (["{artifact}", "--html", "{absent}/x.html"], "x.html: can't be written"),
    ],
)
def test_mistakes_are_told(capsys, tiny_artifact, tmp_path, arguments, message):
    names = {"artifact": tiny_artifact, "absent": tmp_path / "absent"}
    assert message in output(capsys, *(argument.format(**names) for argument in arguments), code=2).err


def test_pictures_ask_for_matplotlib_before_anything_is_measured(capsys, monkeypatch, tiny_artifact, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("hwpq_tvm.inspection.speeds.measure", None)
    found = output(capsys, tiny_artifact, "--measure", "--html", tmp_path / "r.html", code=2)
    assert "pip install 'hwpq-tvm[plots]'" in found.err
    assert output(capsys, tiny_artifact).out
