"""A model for a GPU, from the artefact to the launches of its kernels: all but the kernels themselves runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from library_modules import library_modules
from tiny_hf import tiny_llama

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.cuda_toolkit import find_toolkit
from hwpq_tvm.device_code import CudaModule
from hwpq_tvm.runtime.artifact import read_manifest, read_report
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES

_RUN = """
import json, sys
import fake_gpu
launches = fake_gpu.install(tuple(json.loads(sys.argv[2])))
import hwpq_tvm
from hwpq_tvm.runtime.session import Session
model = hwpq_tvm.load(sys.argv[1])
session = Session(model)
steps = {}
for count in (1, 5, 33, 64):
    session.reset()
    launches.clear()
    logits = session.prefill(list(range(count)), all_logits=True)
    assert logits.shape == (count, model.generation.vocab_size), logits.shape
    steps[count] = list(launches)
session.length = 7
launches.clear()
assert session.decode(3).shape == (model.generation.vocab_size,)
steps["decode"] = list(launches)
assert str(model.device) == "cuda:0"
print(json.dumps({
    step: [
        {"kernel": l.kernel, "threads": l.threads, "dynamic": l.dynamic_bytes, "pointers": l.pointers,
         "grid": [l.extent("blockIdx." + axis) for axis in "xyz"]}
        for l in noted
    ]
    for step, noted in steps.items()
}))
"""

# What the driver gives a kernel without being asked for more. TVM asks when the dynamic part alone is more.
UNASKED = 48 * 1024


ARCHITECTURE = ARCHITECTURES["sm_90a"]


@pytest.fixture(scope="module")
def artifact(nvcc, tmp_path_factory):
    config = HWPQConfig(default=LayerScheme("2:4", "int8", reconstruct="none"))
    target = f"cuda:{ARCHITECTURE.name}"
    model = hwpq_tvm.build(tiny_llama(), target, config=config, calibration=None, max_seq_len=64, progress=False)
    folder = tmp_path_factory.mktemp("gpu") / "artifact"
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def steps(artifact):
    """Launches of prefills of several lengths, and of a decode step."""
    result = subprocess.run(
        [sys.executable, "-c", _RUN, artifact, "[9, 0]"],
        cwd=artifact,  # not the sources, which would come before the installed package
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_every_launch_is_one_that_the_architecture_allows(steps, artifact):
    static = {kernel["name"]: kernel["shared_bytes"] for kernel in read_report(artifact)["device_code"]["kernels"]}
    for launch in (launch for step in steps.values() for launch in step):
        x, y, z = launch["grid"]
        assert 0 < x < 2**31, launch
        assert 0 < y <= 65535, launch
        assert 0 < z <= 65535, launch
        assert 0 < launch["threads"] <= 1024, launch
        together = static[launch["kernel"]] + launch["dynamic"]
        assert together <= ARCHITECTURE.shared_memory_per_block, launch
        assert together <= UNASKED or launch["dynamic"] >= UNASKED, f"{launch}: the driver would refuse it"
        assert all(launch["pointers"]), f"{launch}: a null pointer"
        assert launch["pointers"], launch


def test_a_kernel_asks_for_the_same_shared_memory_each_time(steps):
    """The runtime sets the limit at the first launch only."""
    asked = {}
    for launch in (launch for step in steps.values() for launch in step):
        asked.setdefault(launch["kernel"], set()).add(launch["dynamic"])
    assert not {kernel: sizes for kernel, sizes in asked.items() if len(sizes) > 1 and max(sizes) >= UNASKED}


def test_a_step_runs_all_layers(steps):
    """Four linears, an attention and two norms each for two layers, the embedding and the head."""
    for step in steps.values():
        names = [launch["kernel"] for launch in step]
        assert sum("attention" in name and "activations" not in name for name in names) >= 2
        assert sum(name.startswith("linear") for name in names) >= 2 * 4 + 1
    # Decoding is one token, whatever came before: the same launches as a prefill of one, or fewer.
    assert len(steps["decode"]) <= len(steps["1"])


def test_later_gpus_compile_the_ptx(artifact, tmp_path):
    """With ptxas, as their drivers do when they load it: it holds nothing that only the one architecture has."""
    modules = library_modules(artifact / "model.so")
    (tmp_path / "code.fatbin").write_bytes(CudaModule.from_bytes(modules["cuda"]).code)
    toolkit = find_toolkit()
    extract = [toolkit.tool("cuobjdump"), "--extract-ptx", "all", "code.fatbin"]
    subprocess.run(extract, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    (ptx,) = tmp_path.glob("*.ptx")
    for architecture in ("sm_90", "sm_100"):
        subprocess.run([toolkit.tool("ptxas"), f"-arch={architecture}", ptx, "-o", "/dev/null"], check=True)


def test_the_artefact_says_what_it_holds(artifact):
    manifest, report = read_manifest(artifact), read_report(artifact)
    assert manifest.device_code == {key: value for key, value in report["device_code"].items() if key != "kernels"}
    assert manifest.device_code["architecture"] == ARCHITECTURE.name
    spilling = [k for k in report["device_code"]["kernels"] if k["stack_bytes"] or k["spill_store_bytes"]]
    assert not spilling
