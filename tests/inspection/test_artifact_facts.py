import pytest

from hwpq_tvm.errors import ArtifactError, ConfigError
from hwpq_tvm.inspection.artifact_facts import common_kinds, kind_of, read_artifacts

from . import artifacts


@pytest.mark.parametrize(
    ("name", "kind", "depth"),
    [
        ("model.layers.12.self_attn.q_proj", "model.layers.*.self_attn.q_proj", 12),
        ("model.layers.3.mlp.experts.7.down_proj", "model.layers.*.mlp.experts.*.down_proj", 3),
        ("0.weight", "*.weight", 0),
        ("encoder.block.1", "encoder.block.*", 1),
        ("lm_head", "lm_head", None),
        ("conv2d.w1", "conv2d.w1", None),
    ],
)
def test_the_kind_of_a_layer_is_its_name_without_numbers(name, kind, depth):
    assert kind_of(name) == (kind, depth)


def test_kinds_lose_what_all_begin_with_but_never_their_last_part():
    kinds = ["model.layers.*.attn.q", "model.layers.*.mlp.up", "model.layers.*.attn.q"]
    assert common_kinds(kinds) == {"model.layers.*.attn.q": "attn.q", "model.layers.*.mlp.up": "mlp.up"}
    assert common_kinds(["a.b", "a.b.c"]) == {"a.b": "b", "a.b.c": "b.c"}
    assert common_kinds(["a.*.b"]) == {"a.*.b": "a.*.b"}
    assert common_kinds([]) == {}


def test_layers_are_read_with_their_kinds_and_depths(tmp_path):
    found = artifacts.artifact(tmp_path / "a")
    assert [layer.kind for layer in found.layers[:4]] == list(artifacts.SHAPES)
    assert [layer.depth for layer in found.layers[::4]] == [0, 1, 2, None]
    assert (found.layers[0].out_features, found.layers[2].out_features) == (64, 128)
    assert found.layers[-1].kind == "lm_head"
    assert found.layers[0].kernels == "avx2.gemv (default), avx2.gemm (tuned)"
    assert found.weight_bytes == round(sum(layer.nbytes for layer in found.layers)) + artifacts.OTHER_BYTES
    assert len(found.errors) == len(found.layers)


def test_reports_of_earlier_versions_are_read(tmp_path):
    content = artifacts.report()
    for layer in content["layers"]:
        for key in ("tuned", "rivals", "record", "zeros", "relative_error_of"):
            del layer[key]
    (layer, *_) = artifacts.artifact(tmp_path / "a", content).layers
    assert (layer.tuned, layer.rivals, layer.zeros, layer.error_of) == ({}, {}, None, None)


def test_labels_tell_artefacts_apart(tmp_path):
    paths = [artifacts.write(tmp_path / name) for name in ("one", "two", "x/one")]
    assert [found.label for found in read_artifacts(paths[:2])] == ["one", "two"]
    assert [found.label for found in read_artifacts(paths)] == [str(paths[0]), "two", str(paths[2])]
    with pytest.raises(ConfigError, match="named twice"):
        read_artifacts([paths[0], tmp_path / "x" / ".." / "one"])


def test_a_damaged_report_is_refused(tmp_path):
    folder = artifacts.write(tmp_path / "a")
    (folder / "report.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        read_artifacts([folder])
