"""The whole way on a small model: what is reported is what the model that comes out does."""

import json
import math

import numpy as np
import pytest
import torch

import hwpq_tvm
from hwpq_tvm import HWPQConfig
from hwpq_tvm.choose import choose
from hwpq_tvm.choose.choice import choice_table
from hwpq_tvm.errors import ConfigError, HwpqError
from hwpq_tvm.evaluate import perplexity
from tests.tiny_hf import tiny_llama

LENGTH = 32
SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 101}


@pytest.fixture(scope="module")
def model():
    return tiny_llama(**SIZES)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(5).integers(0, 101, 200)


@pytest.fixture(scope="module")
def choice(model, ids, tmp_path_factory):
    return hwpq_tvm.choose_config(
        model,
        "cpu",
        max_perplexity_increase=0.2,
        calibration=np.random.default_rng(6).integers(0, 101, 100),
        evaluation=ids,
        max_seq_len=LENGTH,
        work_dir=tmp_path_factory.mktemp("work"),
        progress=False,
    )


def test_the_budget_is_kept_to_as_measured(choice, model, ids):
    report = choice.model.report["choice"]
    windows = [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)]
    with torch.no_grad():
        losses = [
            model(torch.tensor(w)[None], labels=torch.tensor(w)[None]).loss.item() * (len(w) - 1) for w in windows
        ]
    tokens = sum(len(window) - 1 for window in windows)
    assert report["tokens"] == tokens
    assert choice.float_perplexity == pytest.approx(math.exp(sum(losses) / tokens), rel=1e-4)
    measured = perplexity(choice.model, ids, window_length=LENGTH, progress=False)
    last = choice.places["checked"][-1]
    assert (last.perplexity_source, last.speed_source) == ("measured", "measured")
    assert last.perplexity == pytest.approx(measured.perplexity)
    assert last.perplexity <= 1.2 * choice.float_perplexity


def test_the_model_is_that_of_the_configuration(choice):
    assert choice.model.manifest.config == choice.config.to_json()
    last = choice.places["checked"][-1]
    assert last.weight_bytes == choice.model.weight_bytes
    schemes = {layer["name"]: layer["scheme"] for layer in choice.model.report["layers"]}
    for unit in choice.model.report["choice"]["units"]:
        for name in unit["layers"]:
            assert schemes[name].startswith(unit["chosen"])
    assert sum(last.layers.values()) == len(schemes)


def test_the_report_has_the_frontier_and_the_rivals(choice):
    report = json.loads(json.dumps(choice.model.report["choice"]))
    assert [place["name"] for place in report["rivals"]] == [
        "dense int8 everywhere",
        "dense int4 everywhere, lm_head dense int8",
        "2:4 int8 everywhere, lm_head dense int8",
        "2:4 int4 everywhere, lm_head dense int8",
    ]
    assert {place["perplexity_source"] for place in report["frontier"]} == {"predicted"}
    sizes = [place["weight_bytes"] for place in report["rivals"]]
    assert sizes[0] == max(sizes)
    assert report["times"] == "measured here"
    assert all(
        option["seconds"] > 0 and option["loss"] >= 0
        for unit in report["units"]
        if unit["name"] != "model.embed_tokens"
        for option in unit["options"].values()
    )
    assert "2:4" in " ".join(report["verdict"])
    assert choice_table(report).row_count == sum(len(report[kind]) for kind in ("checked", "rivals", "frontier"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs one budget, found none"),
        ({"target_size": 1e6, "target_speed": 3.0}, "found target_size and target_speed"),
        ({"target_size": 1e6, "config": HWPQConfig(sequential=True)}, "neither sequential calibration"),
        ({"target_size": 1e6, "evaluation": "nowhere.txt"}, "evaluation text nowhere.txt: can't be read"),
        ({"target_size": 1e6, "evaluation": [3]}, "has 1 tokens"),
        ({"target_size": 1e6, "evaluation": [3, 10**6]}, "out of the vocabulary"),
        ({"target_size": 1e6, "evaluation": [3.5, 4.5]}, "expected flat ids"),
    ],
)
def test_what_cannot_work_is_refused(model, options, words):
    with pytest.raises(HwpqError) as error:
        hwpq_tvm.choose_config(model, "cpu", max_seq_len=LENGTH, **options)
    assert words in str(error.value)


def test_only_language_models_have_a_perplexity():
    module = torch.nn.Linear(8, 8)
    imported = choose.import_model(module, example_inputs=(torch.zeros(1, 8),))
    with pytest.raises(ConfigError, match="is no causal language model"):
        hwpq_tvm.choose_config(imported, "cpu", target_size=1e6)
