"""Configurations: what is accepted, what is refused, and the way to JSON and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import ConfigError

dense = st.builds(LayerScheme, sparsity=st.none(), dtype=st.sampled_from(["int8", "float32"]))
schemes = st.one_of(dense, st.builds(LayerScheme, metric=st.sampled_from(["obd_diag", "magnitude"])))
patterns = st.sampled_from([r".*q_proj", r"model\.layers\.\d+\.mlp\..*", r"lm_head"])
configs = st.builds(
    HWPQConfig,
    default=schemes,
    overrides=st.dictionaries(patterns, schemes),
    ignore=st.lists(patterns, max_size=2).map(tuple),
    lm_head=dense,
)


@given(configs)
def test_json_round_trip(config):
    assert HWPQConfig.from_json(json.dumps(config.to_json())) == config


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LayerScheme(sparsity="3:4"), "sparsity='3:4': expected one of '2:4', None"),
        (lambda: LayerScheme(dtype="int3"), "dtype='int3': expected one of 'int8', 'float32'"),
        (lambda: LayerScheme(metric="size"), "metric='size'"),
        (lambda: LayerScheme(dtype="float32"), 'sparsity="2:4" with dtype="float32"'),
        (lambda: HWPQConfig(ignore=["["]), "not a regular expression"),
        (lambda: HWPQConfig(overrides={"(": LayerScheme()}), "not a regular expression"),
        (lambda: HWPQConfig(lm_head=LayerScheme()), "lm_head=2:4 int8"),
        (lambda: HWPQConfig.from_json("{"), "not JSON"),
        (lambda: HWPQConfig.from_json("[1]"), "expected a JSON object"),
        (lambda: HWPQConfig.from_json({"version": 7}), "found version 7, expected 1"),
        (lambda: HWPQConfig.from_json({"version": 1, "colour": 2}), "unknown keys colour"),
        (lambda: HWPQConfig.from_json({"version": 1, "default": {"bits": 2}}), "can't be read"),
        (lambda: HWPQConfig.from_json({"version": 1, "default": 3}), "can't be read"),
    ],
)
def test_refusals_say_what_was_found(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    assert words in str(error.value)


def test_first_override_wins_and_ignore_keeps_the_dtype():
    config = HWPQConfig(
        overrides={".*k_proj": LayerScheme(metric="magnitude"), ".*_proj": LayerScheme(sparsity=None)},
        ignore=[".*down.*"],
    )
    assert config.scheme("a.k_proj") == (LayerScheme(metric="magnitude"), None)
    assert config.scheme("a.q_proj") == (LayerScheme(sparsity=None), None)
    assert config.scheme("a.mlp") == (LayerScheme(), None)
    assert config.scheme("a.down") == (LayerScheme(sparsity=None), "ignored by '.*down.*'")
    assert config.scheme("head", is_head=True) == (LayerScheme(sparsity=None), None)
    # A pattern has to match the whole name.
    assert config.scheme("a.k_proj.extra")[0] == LayerScheme()


def test_configs_do_not_change():
    config = HWPQConfig(overrides={"a": LayerScheme()})
    with pytest.raises(TypeError):
        config.overrides["b"] = LayerScheme()
    with pytest.raises(AttributeError):
        config.default = LayerScheme()
