import json

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.inspection.comparison import compare_artifacts
from hwpq_tvm.inspection.speeds import Speeds

from . import artifacts


def pair(tmp_path):
    dense = HWPQConfig(default=LayerScheme(sparsity=None, dtype="int4")).to_json()
    sparse = artifacts.artifact(tmp_path / "sparse")
    return [sparse, artifacts.artifact(tmp_path / "dense", artifacts.report("dense int4 g64", 4.25, 0.1), config=dense)]


def rows(found):
    return {row.what: row.values for row in found}


def test_figures_settings_and_kinds_are_told_of_each(tmp_path):
    sparse, dense = pair(tmp_path)
    found = compare_artifacts([sparse, dense], Speeds({"dense": artifacts.figures()}, "measured"))
    figures = rows(found.figures)
    assert figures["weights"] == tuple(f"{each.weight_bytes / 1e6:.1f} MB" for each in (sparse, dense))
    assert figures["largest relative error"] == ("0.2400", "0.1200")
    assert figures["decode, tokens/s"] == ("", "100.0")
    assert rows(found.settings) == {
        "config.default.sparsity": ("2:4", "none"),
        "config.default.dtype": ("int8", "int4"),
    }
    assert rows(found.kinds)["mlp.up_proj"] == (
        "2:4 int8; 5.25 bits; error 0.2200",
        "dense int4 g64; 4.25 bits; error 0.1100",
    )


def test_errors_of_weights_are_not_taken_for_those_of_outputs(tmp_path):
    content = artifacts.report()
    for layer in content["layers"]:
        layer["relative_error_of"] = "weights"
    found = compare_artifacts([artifacts.artifact(tmp_path / "a", content), artifacts.artifact(tmp_path / "b")], None)
    assert rows(found.figures)["relative errors are of"] == ("weights", "output")


def test_only_layers_that_differ_are_named(tmp_path):
    found = compare_artifacts(pair(tmp_path), None)
    assert (len(found.layers), found.same_layers) == (12, 1)
    assert "lm_head" not in found.layers
    assert found.layers["model.layers.1.mlp.up_proj"]["dense"]["scheme"] == "dense int4 g64"


def test_layers_that_one_lacks_differ(tmp_path):
    both = [
        artifacts.artifact(tmp_path / "short", artifacts.report(blocks=2)),
        artifacts.artifact(tmp_path / "long", artifacts.report(blocks=3)),
    ]
    found = compare_artifacts(both, None)
    assert set(found.layers) == {f"model.layers.2.{name}" for name in artifacts.SHAPES}
    assert list(found.layers["model.layers.2.mlp.up_proj"]) == ["long"]


def test_several_schemes_of_a_kind_are_counted(tmp_path):
    content = artifacts.report()
    content["layers"][2]["scheme"] = "dense int4 g64"
    mixed = artifacts.artifact(tmp_path / "mixed", content)
    found = compare_artifacts([mixed, artifacts.artifact(tmp_path / "plain")], None)
    assert rows(found.kinds)["mlp.up_proj"][0].startswith("1 dense int4 g64, 2 2:4 int8;")


def test_json_has_the_same(tmp_path):
    found = json.loads(json.dumps(compare_artifacts(pair(tmp_path), None).to_json()))
    assert found["same_layers"] == 1
    assert found["settings"]["config.default.dtype"] == {"sparse": "int8", "dense": "int4"}
    assert set(found["different_layers"]["model.layers.0.mlp.up_proj"]) == {"sparse", "dense"}
