"""Vision models and plain modules, built: in float32 what torch computes, in int8 what the packed weights give."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.compiler import plan
from hwpq_tvm.errors import CalibrationError, GenerationError

from .reference import reference_model
from .side_by_side import compiled

SCHEMES = {
    "float32": HWPQConfig(default=LayerScheme(sparsity=None, dtype="float32")),
    "int8": HWPQConfig(default=LayerScheme(sparsity=None, dtype="int8")),
    "2:4": HWPQConfig(),
}
BUILDS = [("resnet", "float32"), ("resnet", "int8"), ("vit", "float32"), ("vit", "2:4")]


def resnet():
    """Bottlenecks: 1x1 convolutions of strides 1 and 2, batch norms with statistics of their own."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=12, hidden_sizes=[20, 36], depths=[1, 2], num_labels=7, layer_type="bottleneck"
    )
    model = ResNetForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def vit():
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        image_size=24,
        patch_size=8,
        num_labels=5,
        initializer_range=0.3,
    )
    return ViTForImageClassification(config).eval()


MODELS = {"resnet": (resnet, 33), "vit": (vit, 24)}
SHAPES = {"pixel_values": {0: Dim("batch")}}


def images(size, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator)


def build(name, scheme, folder):
    torch.set_num_threads(1)
    make, size = MODELS[name]
    samples = [(images(size, 2, seed).numpy(),) for seed in (5, 6)]
    hwpq_tvm.build(
        make(),
        "cpu",
        config=SCHEMES[scheme],
        calibration=samples,
        example_inputs={"pixel_values": images(size, 2)},
        dynamic_shapes=SHAPES,
        progress=False,
    ).save(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(Model, scheme) -> compiled model, which went through its folder."""
    with compiled(build, BUILDS, tmp_path_factory.mktemp("vision")) as load:
        yield {key: load(*key) for key in BUILDS}


def logits(model, x):
    with torch.no_grad():
        return model(pixel_values=x).logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_what_torch_computes_for_any_batch(built, name):
    make, size = MODELS[name]
    artefact, model = built[name, "float32"], make()
    results = []
    for batch in (1, 2, 5):
        x = images(size, batch, seed=batch)
        expected = logits(model, x)
        assert expected.std() > 0.1
        found = artefact(x.numpy())
        results.append((found, found.copy()))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    # What was returned stays what it is in later calls.
    assert all(np.array_equal(*pair) for pair in results)
    assert {layer["name"] for layer in artefact.report["layers"]} == {
        module_name
        for module_name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    }


@pytest.mark.parametrize("key", [("resnet", "int8"), ("vit", "2:4")])
def test_compressed_is_what_the_packed_weights_give(built, key):
    make, size = MODELS[key[0]]
    artefact, model = built[key], make()
    x = images(size, 3, seed=9)
    expected = logits(reference_model(artefact, model), x)
    np.testing.assert_allclose(artefact(x.numpy()), expected, atol=2e-3 * np.abs(expected).max())
    report = artefact.report
    # Dense layers are rounded whatever their inputs are.
    assert report["calibration"].get("samples", 0) == (2 if key[1] == "2:4" else 0)
    assert all(layer["kernel"] and "int8" in layer["scheme"] for layer in report["layers"])
    # The classifier is a linear like the others.
    assert [layer["scheme"] for layer in report["layers"]][-1] == ("2:4 int8" if key[1] == "2:4" else "dense int8")
    changed = np.abs(logits(model, x) - expected).max() / np.abs(expected).max()
    assert changed > (0.05 if key[1] == "2:4" else 1e-3)


def test_inputs_that_do_not_fit_are_named(built):
    artefact = built["vit", "float32"]
    assert artefact.manifest.entries["main"].inputs[0].shape == ("batch", 3, 24, 24)
    with pytest.raises(
        GenerationError, match=r"input pixel_values is float64 of shape \(1, 3, 24, 24\): expected float32"
    ):
        artefact(np.zeros((1, 3, 24, 24)))
    with pytest.raises(GenerationError, match=r"expected float32 of shape \(batch, 3, 24, 24\)"):
        artefact(np.zeros((1, 3, 24, 23), np.float32))
    with pytest.raises(GenerationError, match="found 0 inputs, expected 1: pixel_values"):
        artefact.run("main")
    with pytest.raises(GenerationError, match="no entry 'prefill': expected main"):
        artefact.run("prefill", np.zeros(3))
    with pytest.raises(GenerationError, match=r"ViTForImageClassification\) is not a causal language model"):
        list(artefact.generate([1, 2]))


def test_plans_say_what_is_calibrated():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))
    x = torch.randn(4, 16)
    report = plan(model, "cpu", example_inputs=(x,))
    assert [layer["name"] for layer in report["layers"]] == ["0", "2"]
    assert ["calibrated on the example inputs alone" in note for note in report["notes"]] == [True]
    report = plan(model, "cpu", example_inputs=(x,), calibration=[(x,)])
    assert report["notes"] == []
    program = torch.export.export(model, (x,))
    program._example_inputs = None
    report = plan(program, "cpu")
    assert ["nothing was calibrated" in note for note in report["notes"]] == [True]
    assert {layer["metric"] for layer in report["layers"]} == {"magnitude"}
    with pytest.raises(CalibrationError, match="calibration is a text, but the model takes inputs"):
        plan(model, "cpu", example_inputs=(x,), calibration=["some text"])
    with pytest.raises(
        CalibrationError, match=r"sample 0 \(from 0\) of main: input input is float32 of shape \(4, 15\)"
    ):
        hwpq_tvm.build(model, "cpu", example_inputs=(x,), calibration=[(x[:, 1:],)], progress=False)
