import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import Reference, chain, manifest, random_weights

import hwpq_tvm
from hwpq_tvm import cpu
from hwpq_tvm.errors import ArtifactError, TargetError
from hwpq_tvm.runtime import artifact
from hwpq_tvm.runtime.tensor_file import read_tensors, write_tensors

FILES = {"model.so", "params.safetensors", "manifest.json", "report.json", "tokenizer.json", "tokenizer_config.json"}


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """A manifest whose checksum is right, with other values."""
    file = folder / "manifest.json"
    file.write_text(replace(artifact.Manifest.from_json(file.read_text()), **changes).to_json())


def test_round_trip(tiny_artifact):
    assert set(os.listdir(tiny_artifact)) == FILES
    seen = []
    model = hwpq_tvm.load(tiny_artifact, progress=lambda done, total: seen.append((done, total)))
    weights = random_weights(0)
    np.testing.assert_array_equal(model.params["table"], weights[0])
    np.testing.assert_array_equal(model.params["history"], weights[1])
    assert list(model.generate([1, 2], max_new_tokens=5)) == Reference(*weights).greedy([1, 2], 5)
    assert replace(model.manifest, files={}) == manifest()
    assert model.report["layers"][1]["skipped"] == "ignored by '.*[od]dd_proj'"
    assert model.tokenizer.decode(model.tokenizer.encode("naïve")) == "naïve"
    assert seen[-1][0] == seen[-1][1] == (tiny_artifact / "params.safetensors").stat().st_size


def test_a_loaded_model_can_be_saved_again_even_over_itself(tiny_artifact):
    model = hwpq_tvm.load(tiny_artifact, "cpu")
    model.save(tiny_artifact)
    assert set(os.listdir(tiny_artifact)) == FILES
    again = hwpq_tvm.load(tiny_artifact)
    assert list(again.generate([9], max_new_tokens=4)) == list(model.generate([9], max_new_tokens=4))


def test_weights_are_a_plain_safetensors_file(tiny_artifact):
    from safetensors.numpy import load_file

    tensors = load_file(tiny_artifact / "params.safetensors")
    np.testing.assert_array_equal(tensors["history"], random_weights(0)[1])


_FRESH = """
import sys
import hwpq_tvm
model = hwpq_tvm.load(sys.argv[1])
ids = list(model.generate([1, 2], max_new_tokens=5))
text = "".join(model.generate("hi", max_new_tokens=3))
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "tvm", "transformers", "safetensors"})
mapped = open("/proc/self/maps").read()
print(ids, heavy, "libtvm_runtime.so" in mapped, "libtvm_compiler" in mapped, "libtorch" in mapped)
import tvm, torch
from tiny_model import compile_tiny_model
import pathlib, tempfile
from hwpq_tvm.runtime.compiled_model import CompiledModel
library = compile_tiny_model(pathlib.Path(tempfile.mkdtemp(dir=sys.argv[2])))
again = CompiledModel(library, model.params, model.manifest, {}, {})
print(list(again.generate([1, 2], max_new_tokens=5)), list(model.generate([1, 2], max_new_tokens=5)))
"""


def test_load_needs_neither_torch_nor_the_compiler_and_both_can_come_later(tiny_artifact, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", _FRESH, tiny_artifact, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    expected = Reference(*random_weights(0)).greedy([1, 2], 5)
    first, second = result.stdout.splitlines()
    assert first == f"{expected} [] True False False"
    assert second == f"{expected} {expected}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_byte_is_found(tiny_artifact, name):
    file = tiny_artifact / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}: .*Copy or build the artefact again"):
        hwpq_tvm.load(tiny_artifact)


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_a_missing_file_is_named(tiny_artifact, name):
    (tiny_artifact / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        hwpq_tvm.load(tiny_artifact)


def test_a_truncated_weight_file(tiny_artifact):
    os.truncate(tiny_artifact / "params.safetensors", 1000)
    with pytest.raises(ArtifactError, match=r"params.safetensors: is damaged"):
        hwpq_tvm.load(tiny_artifact)


def test_what_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        hwpq_tvm.load(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"has no manifest.json, so it is not an artefact"):
        hwpq_tvm.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="has no format_version"):
        hwpq_tvm.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest.json: is not JSON"):
        hwpq_tvm.load(tmp_path)


def test_a_newer_format(tiny_artifact):
    file = tiny_artifact / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 2}))
    with pytest.raises(ArtifactError, match="format version 2, this hwpq_tvm reads version 1"):
        hwpq_tvm.load(tiny_artifact)


def test_another_tvm(tiny_artifact):
    rewrite_manifest(tiny_artifact, tvm_version="0.99.0")
    with pytest.raises(
        ArtifactError, match=r"built with apache-tvm 0.99.0, installed is .* Install apache-tvm==0.99.0"
    ):
        hwpq_tvm.load(tiny_artifact)


def test_a_manifest_can_not_name_files_elsewhere(tiny_artifact):
    rewrite_manifest(tiny_artifact, files={"../elsewhere": "0"})
    with pytest.raises(ArtifactError, match=r"'../elsewhere' is not the name of a file"):
        hwpq_tvm.load(tiny_artifact)


def test_missing_cpu_features_are_named(tiny_artifact, monkeypatch):
    rewrite_manifest(tiny_artifact, required_features=("avx2", "avx512f", "avx512vnni", "sgx"))
    monkeypatch.setattr(cpu, "architecture", lambda: "x86_64")
    monkeypatch.setattr(artifact, "architecture", lambda: "x86_64")
    monkeypatch.setattr(cpu, "_kernel_flags", lambda: frozenset({"avx", "avx2", "fma"}))
    with pytest.raises(ArtifactError, match="built for a CPU with avx512f, avx512vnni, which this one lacks"):
        hwpq_tvm.load(tiny_artifact)


def test_another_architecture(tiny_artifact, monkeypatch):
    monkeypatch.setattr(artifact, "architecture", lambda: "riscv64")
    with pytest.raises(ArtifactError, match=r"built for .*, this machine is riscv64"):
        hwpq_tvm.load(tiny_artifact)


def test_unknown_device(tiny_artifact):
    with pytest.raises(TargetError, match='device=\'gpu\': expected "cpu", "cuda" or "cuda:N"'):
        hwpq_tvm.load(tiny_artifact, "gpu")
    with pytest.raises(TargetError, match=r"built for CPUs, so it can't run on cuda:1\. Build it with target"):
        hwpq_tvm.load(tiny_artifact, "cuda:1")


def test_an_artifact_is_replaced_only_by_a_whole_one(tiny, tiny_artifact, monkeypatch):
    other = tiny(*chain(1, 2, 3))

    def out_of_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match=r"No space left.*Free some space"):
        patch.setattr(shutil, "copyfile", out_of_space)
        other.save(tiny_artifact)
    assert [path.name for path in tiny_artifact.parent.iterdir()] == ["artifact"]
    np.testing.assert_array_equal(hwpq_tvm.load(tiny_artifact).params["table"], random_weights(0)[0])
    other.save(tiny_artifact)
    assert [path.name for path in tiny_artifact.parent.iterdir()] == ["artifact"]
    assert list(hwpq_tvm.load(tiny_artifact).generate([1], max_new_tokens=2)) == [2, 3]


def test_the_old_artifact_comes_back_when_the_new_one_can_not_take_its_place(tiny, tiny_artifact, monkeypatch):
    rename, calls = Path.rename, []

    def fails_second(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.EACCES, "denied")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="denied"):
        patch.setattr(Path, "rename", fails_second)
        tiny(*chain(1, 2, 3)).save(tiny_artifact)
    assert [path.name for path in tiny_artifact.parent.iterdir()] == ["artifact"]
    np.testing.assert_array_equal(hwpq_tvm.load(tiny_artifact).params["table"], random_weights(0)[0])


def test_a_damaged_artifact_can_be_replaced(tiny, tiny_artifact):
    (tiny_artifact / "manifest.json").write_text("{")
    tiny(*chain(1, 2, 3)).save(tiny_artifact)
    assert list(hwpq_tvm.load(tiny_artifact).generate([1], max_new_tokens=2)) == [2, 3]


def test_other_things_are_not_replaced(tiny, tiny_artifact, tmp_path):
    model = tiny(*random_weights(0))
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    (tiny_artifact / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is not a folder"):
        model.save(file)
    with pytest.raises(ArtifactError, match=r"holds files that belong to no artefact \(thesis.tex\)"):
        model.save(folder)
    with pytest.raises(ArtifactError, match=r"notes.txt"):
        model.save(tiny_artifact)
    assert file.read_text() == "mine"
    assert (folder / "thesis.tex").exists()


def test_saving_makes_parents_and_fills_an_empty_folder(tiny, tmp_path):
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "a", tmp_path / "b" / "c"):
        tiny(*random_weights(0)).save(path)
        assert set(os.listdir(path)) == FILES


def test_tensors_of_any_size_come_back_aligned(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "odd": rng.integers(-128, 128, (3, 7), np.int8),
        "scale": rng.standard_normal(5).astype(np.float32),
        "half": rng.standard_normal((2, 3)).astype(np.float16),
        "round": rng.integers(-128, 128, (4, 64), np.int8),
        "index": rng.integers(0, 9, (1,), np.int64),
    }
    found = read_tensors(tmp_path / "x", write_tensors(tmp_path / "x", tensors))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].ctypes.data % 64 == 0
