"""Imported tiny mixtures of experts compute what transformers computes, whole or step by step."""

import numpy as np
import pytest
import torch

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from tests.importers.stock_build import Runner
from tests.tiny_experts import tiny_experts


@pytest.mark.parametrize("name", ["olmoe", "qwen3_moe"])
def test_prefill_and_decode_give_the_logits_of_transformers(name):
    model = tiny_experts(name, num_hidden_layers=1)
    ids = np.random.default_rng(1).integers(3, 101, 15).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert expected.std() > 0.3
    runner = Runner(import_model(model, max_seq_len=24))
    np.testing.assert_allclose(runner.prefill(ids[:11], 0, [10, 0, 3]), expected[[10, 0, 3]], atol=1e-4)
    for position in (11, 12):
        np.testing.assert_allclose(runner.decode(ids[position], position), expected[position], atol=1e-4)


def test_a_folder_holds_the_weights_of_each_expert(tmp_path):
    model = tiny_experts("mixtral", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    live, folder = import_model(model, max_seq_len=16), import_model(str(tmp_path), max_seq_len=16)
    entry = live.module["decode"]
    names = [parameter.name for parameter in entry.params[int(entry.attrs["num_input"]) :]]
    assert names == [parameter.name for parameter in folder.module["decode"].params[int(entry.attrs["num_input"]) :]]
    experts = [name for name in names if ".experts." in name]
    assert len(experts) == 2 * model.config.num_local_experts
    for name in names:
        np.testing.assert_array_equal(live.parameters.load(name), folder.parameters.load(name))
    third = live.parameters.load("model.layers.0.mlp.experts.gate_up_proj.3")
    np.testing.assert_array_equal(third, model.model.layers[0].mlp.experts.gate_up_proj[3].detach().numpy())


def test_experts_that_are_not_stacked_are_refused():
    model = tiny_experts("mixtral", num_hidden_layers=1)
    experts = model.model.layers[0].mlp.experts
    experts.extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ImportModelError, match=r"MixtralExperts can't be taken apart \(extra is \[3\], not stacked"):
        import_model(model, max_seq_len=16)
