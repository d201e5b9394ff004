"""Mixtures of experts through the whole of `build`, against transformers on the same numbers."""

import copy

import numpy as np
import pytest
import torch
from transformers.integrations.moe import ExpertsInterface

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.runtime.session import Session
from tests.tiny_experts import tiny_experts

from .reference import dequantized_weights, fake_quantized

FLOAT32 = LayerScheme(None, "float32")
# Model and configuration of each build: one alone and one with shared experts, three sequences at once and one.
BUILDS = {
    "float32": ("mixtral", 3, HWPQConfig(default=FLOAT32, lm_head=FLOAT32)),
    "int8": ("qwen2_moe", 1, HWPQConfig(default=LayerScheme(None, "int8"))),
}
LENGTH = 48


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By build: the model of transformers, and what was built of its folder."""
    made = {}
    tokens = np.random.default_rng(4).integers(0, 101, (3, 40))
    for name, (architecture, batch, config) in BUILDS.items():
        hf = tiny_experts(architecture)
        hf.save_pretrained(folder := tmp_path_factory.mktemp(name))
        options = {"config": config, "calibration": tokens, "max_batch": batch, "max_seq_len": LENGTH}
        made[name] = hf, hwpq_tvm.build(str(folder), "cpu", progress=False, **options)
    return made


def prompts():
    rng = np.random.default_rng(6)
    return [rng.integers(3, 101, length) for length in (13, 5, 22)]


def logits(model, ids):
    """Logits of transformers, `[len(ids), vocab]`."""
    with torch.no_grad():
        return model(torch.from_numpy(ids[None])).logits[0].numpy().astype(np.float64)


def continued(model, ids):
    """What transformers continues with, most likely token by token."""
    ids = torch.from_numpy(ids[None])
    options = {"max_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    return model.generate(ids, **options)[0, ids.shape[1] :].tolist()


def test_float32_gives_what_transformers_gives(models):
    hf, built = models["float32"]
    for ids in prompts():
        expected = logits(hf, ids)
        assert expected.std() > 0.3
        assert np.abs(built(ids) - expected).max() < 1e-3
        answer = continued(hf, ids)
        assert len(set(answer)) > 3
        assert list(built.generate(ids, 16)) == answer


def test_sequences_of_unequal_lengths_run_together(models):
    hf, built = models["float32"]
    generation = built.generate_batch(prompts(), max_new_tokens=16)
    for _ in generation:
        pass
    assert generation.token_ids == [continued(hf, ids) for ids in prompts()]


def test_a_single_token_leaves_most_experts_without_work(models):
    """One expert's rows are as many as chose it, none for most."""
    hf, built = models["float32"]
    session = Session(built)
    ids = prompts()[1]
    found = [session.prefill(ids[:1])[0], *(session.decode(int(token)) for token in ids[1:])]
    assert np.abs(np.stack(found) - logits(hf, ids)).max() < 1e-3


def quantized_experts(module, hidden_states, top_k_index, top_k_weights):
    """Experts as transformers computes them, on activations that are quantized per token."""
    result = torch.zeros_like(hidden_states)
    for expert in range(module.num_experts):
        tokens, place = torch.where(top_k_index == expert)
        x = fake_quantized(hidden_states[tokens]) @ module.gate_up_proj[expert].T
        y = fake_quantized(module._apply_gate(x)) @ module.down_proj[expert].T
        result.index_add_(0, tokens, y * top_k_weights[tokens, place, None])
    return result


ExpertsInterface.register("quantized_experts", quantized_experts)


def dequantized(built, hf, *, quantize_activations):
    """A copy of a model with the weights of a build, and activations quantized where its kernels do."""
    result = copy.deepcopy(hf)
    modules, parameters = dict(result.named_modules()), dict(result.named_parameters())
    for name, weight in dequantized_weights(built).items():
        stacked, _, expert = name.rpartition(".")
        with torch.no_grad():
            if stacked in parameters:
                parameters[stacked][int(expert)].copy_(torch.from_numpy(weight))
                continue
            modules[name].weight.copy_(torch.from_numpy(weight))
        if quantize_activations and isinstance(modules[name], torch.nn.Linear):
            modules[name].register_forward_pre_hook(lambda _, inputs: (fake_quantized(inputs[0]),))
    if quantize_activations:
        result.config._experts_implementation = "quantized_experts"
    return result


def test_int8_gives_what_its_dequantized_weights_give(models):
    hf, built = models["int8"]
    ids = prompts()[2]
    expected = logits(dequantized(built, hf, quantize_activations=True), ids)
    noise = np.linalg.norm(expected - logits(dequantized(built, hf, quantize_activations=False), ids))
    assert noise > 0
    # Rounding in float32 moves an activation to the next of its levels now and then: see test_tiny_models.
    bound = max(0.25 * noise, 1e-5 * np.linalg.norm(expected))
    assert np.linalg.norm(built(ids) - expected) < bound
    session = Session(built)
    stepwise = [session.prefill(ids[:13])[0], *(session.decode(int(token)) for token in ids[13:])]
    assert np.linalg.norm(np.stack(stepwise) - expected[12:]) < bound


def test_every_expert_is_compressed_and_no_router(models):
    hf, built = models["int8"]
    layers = {layer["name"]: layer for layer in built.report["layers"]}
    for block in range(hf.config.num_hidden_layers):
        mlp = f"model.layers.{block}.mlp"
        assert layers[f"{mlp}.gate"]["scheme"] == "dense float32"
        assert "chooses experts" in layers[f"{mlp}.gate"]["skipped"]
        for expert in range(hf.config.num_experts):
            for part, shape in (("gate_up_proj", [56, 36]), ("down_proj", [36, 28])):
                layer = layers[f"{mlp}.experts.{part}.{expert}"]
                assert (layer["scheme"], layer["shape"], layer["skipped"]) == ("dense int8", shape, None)
        assert layers[f"{mlp}.shared_expert.up_proj"]["scheme"] == "dense int8"
