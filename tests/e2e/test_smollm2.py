"""SmolLM2-135M from the GGUF file to generated tokens, against transformers on the same weights."""

import json
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import torch

from hwpq_tvm.evaluate import perplexity

from .reference import reference_model

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
)


def hf_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_float32_writes_what_transformers_writes(smollm2, smollm2_hf, prompt):
    model = smollm2("float32")
    ids = model.tokenizer.encode(prompt)
    # Nothing ends the text early on either side: 32 tokens each, or up to the same end token.
    expected = smollm2_hf.generate(
        torch.tensor([ids]), max_new_tokens=32, do_sample=False, eos_token_id=list(model.generation.eos_token_ids)
    )[0, len(ids) :].tolist()
    found = list(model.generate(ids, max_new_tokens=32))
    end = set(model.generation.eos_token_ids)
    assert found == [token for token in expected if token not in end]
    assert len(expected) == 32 or expected[-1] in end
    assert np.abs(model(ids)[-1] - hf_logits(smollm2_hf, ids)[-1]).max() < 1e-3


@pytest.mark.parametrize("scheme", ["int8", "dense int4", "2:4 int8"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_compressed_logits_are_those_of_the_dequantized_model(smollm2, smollm2_hf, scheme, prompt):
    model = smollm2(scheme)
    ids = model.tokenizer.encode(prompt)
    expected = hf_logits(reference_model(model, smollm2_hf), ids)
    # Both sides round the same activations, in float32 that differs in the last bits. Where a value lies that close
    # to the middle between two levels, the sides take different levels; over 30 layers such differences grow, but
    # they are part of the noise of quantizing activations, and can't exceed the size of that noise.
    noise = np.linalg.norm(expected - hf_logits(reference_model(model, smollm2_hf, quantize_activations=False), ids))
    assert np.linalg.norm(model(ids) - expected) < noise


def test_perplexity_shows_what_each_scheme_costs(smollm2):
    text = resources.files("hwpq_tvm").joinpath("data/evaluation.txt").read_text(encoding="utf-8")
    found = {
        scheme: perplexity(smollm2(scheme), text, windows=2, window_length=256).perplexity
        for scheme in ("float32", "int8", "dense int4", "2:4 int8")
    }
    # int8 weights and activations cost a few percent, int4 weights a fifth; 2:4 more than doubles it even when the kept
    # weights are adjusted (without that it is five times as much).
    assert found["int8"] == pytest.approx(found["float32"], rel=0.1)
    assert 1.05 < found["dense int4"] / found["float32"] < 1.4
    assert 1.5 < found["2:4 int8"] / found["float32"] < 4


def test_the_report_tells_sizes_and_errors(smollm2):
    report = smollm2("2:4 int8").report
    pruned = [layer for layer in report["layers"] if layer["scheme"] == "2:4 int8"]
    assert len(pruned) == 210
    assert all(5.0 <= layer["bits_per_weight"] < 5.2 for layer in pruned)
    assert all(0.01 < layer["relative_error"] < 0.5 for layer in pruned)
    assert {layer["relative_error_of"] for layer in pruned} == {"output"}
    assert {layer["reconstruct"] for layer in pruned} == {"iht"}
    assert all(0.5 <= layer["zeros"] < 0.52 and layer["seconds"] > 0 for layer in pruned)
    assert any("expect a model that is clearly worse" in warning for warning in report["warnings"])
    dense = [layer for layer in smollm2("int8").report["layers"] if layer["scheme"] == "dense int8"]
    assert len(dense) == 211
    assert all(layer["relative_error"] < 0.03 for layer in dense)
    assert report["calibration"]["tokens"] > 1000
    assert report["model"]["weight_bytes"] == sum(array.nbytes for array in smollm2("2:4 int8").params.values())
    assert report["model"]["weight_bytes"] < 0.75 * smollm2("int8").report["model"]["weight_bytes"]


def test_saved_and_loaded_in_a_fresh_process_it_writes_the_same(smollm2, tmp_path):
    model = smollm2("2:4 int8")
    ids = model.tokenizer.encode(PROMPTS[2])
    expected = list(model.generate(ids, max_new_tokens=24))
    model.save(tmp_path / "artifact")
    script = (
        "import json, sys, hwpq_tvm\n"
        f"model = hwpq_tvm.load({str(tmp_path / 'artifact')!r})\n"
        f"found = list(model.generate({ids}, max_new_tokens=24))\n"
        "compiler = [line for line in open('/proc/self/maps') if 'libtvm_compiler' in line]\n"
        "print(json.dumps([found, 'torch' in sys.modules, len(compiler)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [expected, False, 0]
