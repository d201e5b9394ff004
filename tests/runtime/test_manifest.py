import json
from dataclasses import replace

import pytest
from tiny_model import MAX_SEQ_LEN, V, manifest

from hwpq_tvm.errors import ArtifactError
from hwpq_tvm.runtime.manifest import Manifest, _checksum


def changed(**changes):
    """JSON of a manifest with other values and the checksum that belongs to them."""
    value = {**json.loads(manifest().to_json()), **changes}
    del value["checksum"]
    value = {name: item for name, item in value.items() if item != "absent"}
    return json.dumps({**value, "checksum": _checksum(value)})


@pytest.mark.parametrize("generation", [manifest().generation, None])
def test_round_trip(generation):
    before = manifest(generation=generation, required_features=("avx2",), files={"model.so": "0" * 64})
    assert Manifest.from_json(before.to_json()) == before


def test_json_names_what_the_artefact_promises():
    value = json.loads(manifest().to_json())
    assert value["format_version"] == 1
    assert value["entries"]["prefill"]["inputs"][0] == {
        "name": "input_ids",
        "shape": [1, "seq_len"],
        "dtype": "int64",
    }
    assert [parameter["name"] for parameter in value["parameters"]] == ["table", "history"]


def test_bytes_of_the_cache():
    spec = manifest().generation
    assert spec.kv_cache_bytes == 4 * 2 * MAX_SEQ_LEN * V
    int8 = replace(spec, kv_cache_shape=(3, 2, 1, 2, 10, 64 + 4), kv_cache_dtype="int8")
    assert int8.kv_cache_bytes == 3 * 2 * 2 * 10 * 68


def test_targets_as_tvm_gives_them_become_plain_json():
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 3})
    found = Manifest.from_json(manifest(target=target.export()).to_json())
    assert found.target["mcpu"] == "x86-64-v3"
    assert found.num_threads == 3
    assert tvm.target.Target(dict(found.target)).mcpu == "x86-64-v3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "has no format_version"),
        ("nonsense", "is not JSON"),
        (manifest().to_json().replace('"eos_token_ids": [\n      257', '"eos_token_ids": [\n      258'), "checksum"),
        (changed(entries="absent"), "lacks or misspells a field .*entries"),
        (changed(surprise=1), "lacks or misspells a field .*surprise"),
        (changed(generation={"batch": 1}), "lacks or misspells a field .*kv_cache_shape"),
        (changed(files={"a/b": "0"}), "'a/b' is not the name of a file"),
    ],
)
def test_damage(text, message):
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(text)
