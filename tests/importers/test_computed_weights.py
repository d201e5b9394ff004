"""Weights that a checkpoint may lack are computed where the model does so, and asked for where it does not."""

import numpy as np
import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.importers.computed_weights import computed_weights
from hwpq_tvm.importers.structure import build_structure
from tests.tiny_hf import save

POSITIONS = [f"model.{part}.embed_positions.weight" for part in ("encoder", "decoder")]
LAYERS = {"layers": 1, "attention_heads": 3, "ffn_dim": 44}


@pytest.fixture(scope="module")
def model():
    sizes = {f"{part}_{name}": number for part in ("encoder", "decoder") for name, number in LAYERS.items()}
    torch.manual_seed(5)
    config = MarianConfig(
        vocab_size=101, d_model=36, max_position_embeddings=24, pad_token_id=100, decoder_start_token_id=100, **sizes
    )
    return MarianMTModel(config).eval()


def test_tables_of_positions_that_are_not_stored_are_computed(model, tmp_path):
    imported = import_model(save(model, tmp_path))
    main = imported.module["decoder"]
    assert {*POSITIONS} < {str(each.name) for each in main.params}
    for name in POSITIONS:
        expected = model.get_parameter(name).detach().numpy()
        assert expected.std() > 0.1 and imported.parameters.shape(name) == expected.shape
        np.testing.assert_array_equal(imported.parameters.load(name), expected)
        np.testing.assert_array_equal(imported.parameters.load_index(name, 3), expected[3])


def test_what_is_random_is_not_computed(model):
    structure = build_structure(model.config)
    random = "model.encoder.layers.0.fc1.weight"
    before = torch.get_rng_state()
    assert set(computed_weights(structure, [*POSITIONS, random])) == {*POSITIONS}
    assert torch.equal(torch.get_rng_state(), before)
    assert structure.get_parameter(random).is_meta


def test_random_weights_that_are_used_have_to_be_there(model, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.encoder.layers.0.fc1.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr(MarianMTModel, "_keys_to_ignore_on_load_missing", ["fc1.weight", "embed_positions.weight"])
    with pytest.raises(ImportModelError, match=r"lacks model\.encoder\.layers\.0\.fc1\.weight: MarianMTModel may be"):
        import_model(tmp_path)
