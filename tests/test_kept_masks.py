"""Checkpoints that are 2:4 already come out with the masks that they went in with."""

import numpy as np
import pytest
import torch

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.kept_masks import satisfies
from tests.e2e.reference import reference_model
from tests.tiny_hf import tiny_llama

DENSE = "model.layers.0.mlp.up_proj"


def prune(model, *, spare):
    """Zero two of every four weights at random, which no metric would choose, in all linears but one."""
    generator = torch.Generator().manual_seed(8)
    masks = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name not in (spare, "lm_head"):
                weight = module.weight
                order = torch.rand(weight.shape[0], weight.shape[1] // 4, 4, generator=generator).argsort(-1)
                mask = (order >= 2).reshape(weight.shape)
                mask[0, :4] = False  # groups may have more zeros
                weight *= mask
                masks[name] = mask.numpy()
    return masks


def test_masks_stay_whatever_the_metric_and_the_reconstruction():
    model = tiny_llama(num_hidden_layers=1, hidden_size=48, intermediate_size=44, head_dim=12)
    masks = prune(model, spare=DENSE)
    config = HWPQConfig(
        default=LayerScheme("2:4", "int8", reconstruct="iht"),
        overrides={".*k_proj": LayerScheme("2:4", "float16", metric="hwpq", reconstruct="cg")},
    )
    tokens = np.random.default_rng(4).integers(0, model.config.vocab_size, (2, 32))
    compiled = hwpq_tvm.build(model, "cpu", config=config, calibration=tokens, max_seq_len=32, progress=False)
    layers = {layer["name"]: layer for layer in compiled.report["layers"]}
    assert layers[DENSE]["reconstruct"] == "iht"
    stored = reference_model(compiled, model)
    assert len(masks) == 6
    for name, mask in masks.items():
        assert layers[name]["reconstruct"] == "none"
        assert layers[name]["warnings"] == ["was 2:4 sparse already: nothing was pruned"]
        assert layers[name]["relative_error"] < 0.02
        weight = stored.get_submodule(name).weight.detach().numpy()
        assert not weight[~mask].any()
        # What quantizing rounds to zero is all that is missing.
        assert np.count_nonzero(weight) > 0.97 * np.count_nonzero(model.get_submodule(name).weight.detach().numpy())


@pytest.mark.parametrize(
    ("row", "n", "m", "expected"),
    [
        ([1, 0, 2, 0, 0, 0, 0, 3], 2, 4, True),
        ([1, 0, 2, 3, 0, 0, 0, 3], 2, 4, False),
        ([1, 0, 0, 1, 0, 1], 1, 3, False),
        ([1, 0, 0, 0, 1, 0, 0, 1], 1, 3, True),
        ([1, 0, 0, 1, 0, 0, 1, 1], 1, 3, False),
    ],
)
def test_n_of_m(row, n, m, expected):
    assert satisfies(np.array([row, [0] * len(row)], np.float32), n, m) is expected


@pytest.mark.parametrize("rows_alone", [True, False])
def test_of_a_dense_layer_one_row_is_read_and_what_has_no_rows_once(monkeypatch, rows_alone):
    from hwpq_tvm.importers import import_model
    from hwpq_tvm.kept_masks import keep_masks
    from hwpq_tvm.relax_passes.make_plan import make_plan

    model = tiny_llama(num_hidden_layers=1)
    prune(model, spare=DENSE)
    imported = import_model(model, max_seq_len=16)
    plan = make_plan(
        imported.module,
        imported.entries,
        HWPQConfig(default=LayerScheme("2:4", "int8", reconstruct="iht")),
        calibrated=True,
    )
    read, rows = [], []
    kind = type(imported.parameters)
    stock, stock_index = kind.load, kind.load_index
    assert all(imported.parameters.reads_parts(linear.weight) for linear in plan.linears)
    monkeypatch.setattr(kind, "reads_parts", lambda self, name: rows_alone)
    monkeypatch.setattr(kind, "load", lambda self, name: read.append(name) or stock(self, name))
    monkeypatch.setattr(
        kind, "load_index", lambda self, name, index: rows.append((name, index)) or stock_index(self, name, index)
    )
    kept = keep_masks(plan, imported.parameters)
    asked = {linear.weight for linear in plan.linears if linear.needs_gram}
    assert len(asked) == 7
    assert sorted(read) == sorted(asked - {DENSE + ".weight"} if rows_alone else asked)
    assert sorted(rows) == sorted((name, 0) for name in asked if rows_alone)
    assert [linear.weight for linear in kept.linears if linear.needs_gram] == [DENSE + ".weight"]
    assert [group.name for group in kept.groups] == [group.name for group in plan.groups]
