import json

import pytest

from hwpq_tvm.errors import ConfigError
from hwpq_tvm.inspection.speeds import Speeds, decode_parts, decode_seconds, measure, members, read_speeds

from . import artifacts

PACKED = {
    "model.layers.0.self_attn.q_proj+k_proj.weight": 2e-5,
    "model.layers.1.self_attn.q_proj+k_proj.weight": 3e-5,
    "model.layers.0.mlp.up_proj.weight": 4e-5,
    "lm_head.weight": 1e-4,
}
APART = {
    "model.layers.0.self_attn.q_proj.weight": 5e-5,
    "model.layers.0.self_attn.k_proj.weight": 6e-5,
    "model.layers.0.mlp.up_proj.weight": 7e-5,
    "lm_head.weight": 2e-4,
}


def test_a_file_of_one_model_is_that_of_the_only_artefact(tmp_path):
    found = artifacts.artifact(tmp_path / "a")
    (tmp_path / "bench.json").write_text(json.dumps(artifacts.figures()))
    speeds = read_speeds(tmp_path / "bench.json", [found])
    assert list(speeds.models) == ["a"]
    assert speeds.origin == "from bench.json"


def test_a_file_of_several_knows_artefacts_by_their_folders(tmp_path, monkeypatch):
    both = [artifacts.artifact(tmp_path / name) for name in ("a", "b")]
    models = {"a": artifacts.figures(), "llama.cpp": artifacts.figures()}
    (tmp_path / "bench.json").write_text(json.dumps({"models": models}))
    monkeypatch.chdir(tmp_path)
    assert list(read_speeds(tmp_path / "bench.json", both).models) == ["a", "llama.cpp"]
    (tmp_path / "one.json").write_text(json.dumps(artifacts.figures()))
    assert list(read_speeds(tmp_path / "one.json", both).models) == ["one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is no JSON"),
        ("[]", "no speeds"),
        ('{"models": {"a": {"decode_tokens_per_second": 1}}}', "no speeds"),
        ('{"perplexity": 3}', "no speeds"),
        ('{"models": {}}', "no speeds"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_speeds(tmp_path / "bench.json", [artifacts.artifact(tmp_path / "a")])
    with pytest.raises(ConfigError, match="can't be read"):
        read_speeds(tmp_path / "absent.json", [])


def test_parts_of_a_step_are_by_kind_of_layer():
    found = decode_parts(Speeds({"a": artifacts.figures(linears=PACKED), "b": artifacts.figures()}, "measured"))
    assert list(found) == ["a"]
    assert found["a"] == pytest.approx(
        {
            "self_attn.q_proj+k_proj": 5e-5,
            "mlp.up_proj": 4e-5,
            "lm_head": 1e-4,
            "attention": 1e-3,
            "other kernels": 2e-4,
            "virtual machine": 0.0,
        }
    )


def test_layers_that_another_model_packs_together_are_added_up():
    models = {"a": artifacts.figures(linears=APART), "b": artifacts.figures(linears=PACKED)}
    found = decode_parts(Speeds(models, "measured"))
    assert found["a"].keys() == found["b"].keys()
    assert found["a"]["self_attn.q_proj+k_proj"] == pytest.approx(11e-5)


def test_every_layer_has_the_time_of_what_it_is_packed_with(tmp_path):
    found = decode_seconds(artifacts.figures(linears=PACKED), artifacts.artifact(tmp_path / "a"))
    assert found["model.layers.1.self_attn.q_proj"] == found["model.layers.1.self_attn.k_proj"] == 3e-5
    assert found["lm_head"] == 1e-4
    assert "model.layers.1.mlp.up_proj" not in found
    assert decode_seconds(artifacts.figures(), artifacts.artifact(tmp_path / "b")) == {}


def test_names_of_packed_layers_are_taken_apart():
    assert members("a.b.q+k+v") == ["a.b.q", "a.b.k", "a.b.v"]
    assert members("a.q+c.k") == ["a.q", "c.k"]
    assert members("q+k") == ["q", "k"]
    assert members("head") == ["head"]


def test_speeds_are_measured_with_what_fits(tiny):
    from tiny_model import random_weights

    speeds = measure({"a": tiny(*random_weights(0))}, repeat=1, progress=False)
    assert speeds.origin.startswith("measured in this run")
    assert (speeds.models["a"]["prompt_length"], speeds.models["a"]["repeat"]) == (12, 1)
    assert set(decode_parts(speeds)["a"]) >= {"attention", "other kernels", "virtual machine"}
