"""Configurations: what is accepted, what is refused, and the way to JSON and back."""

import copy
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwpq_tvm.config import HWPQConfig, LayerScheme, presets
from hwpq_tvm.errors import ConfigError
from hwpq_tvm.scheme import DTYPES, METRICS, RECONSTRUCTIONS

dtypes = st.sampled_from(DTYPES)
dense = st.builds(LayerScheme, sparsity=st.none(), dtype=dtypes)
grouped = st.builds(
    LayerScheme,
    sparsity=st.sampled_from([None, "2:4", "4:8", 0.3, "auto"]),
    dtype=st.sampled_from(["int8", "int4"]),
    group_size=st.sampled_from([None, 32, 64, 128, -1]),
    clip_search=st.booleans(),
)
sparse = st.builds(
    LayerScheme,
    sparsity=st.sampled_from(["2:4", "1:4", "15:16"]) | st.floats(0.01, 0.99),
    dtype=dtypes.filter(lambda dtype: dtype != "float32"),
    metric=st.sampled_from(METRICS),
    reconstruct=st.sampled_from(RECONSTRUCTIONS),
)
schemes = dense | grouped | sparse
patterns = st.sampled_from([r".*q_proj", r"model\.layers\.\d+\.mlp\..*", r"lm_head"])
configs = st.builds(
    HWPQConfig,
    default=schemes,
    overrides=st.dictionaries(patterns, schemes),
    ignore=st.lists(patterns, max_size=2).map(tuple),
    lm_head=dense,
    kv_cache_dtype=st.sampled_from(["float32", "int8"]),
    activations=st.sampled_from(["int8", "float"]),
    group_policy=st.sampled_from(["error", "pad", "skip"]),
    sequential=st.booleans(),
)


@given(configs)
def test_json_round_trip(config):
    assert HWPQConfig.from_json(json.dumps(config.to_json())) == config


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LayerScheme(dtype="int3"), "dtype='int3': expected one of 'int8', 'int4'"),
        (lambda: LayerScheme(metric="size"), "metric='size'"),
        (lambda: LayerScheme(reconstruct="obs"), "reconstruct='obs': expected one of 'auto', 'none', 'cg', 'iht'"),
        (lambda: LayerScheme(dtype="float32"), "sparsity='2:4' with dtype=\"float32\""),
        (lambda: LayerScheme("auto", "float32"), "sparsity='auto' with dtype=\"float32\""),
        (
            lambda: LayerScheme("auto", selection="ewma"),
            "sparsity='auto' with selection='ewma'",
        ),
        (lambda: LayerScheme("automatic"), '"auto" (2:4 or dense, by time)'),
        (lambda: LayerScheme(group_size=48), 'dtype="int8" with group_size=48: expected one of 32, 64, 128, -1, None'),
        (lambda: LayerScheme(dtype="float16", group_size=64), 'dtype="float16" with group_size=64'),
        (lambda: LayerScheme(selection="ewma"), "sparsity='2:4' with selection='ewma': expected one of 'rank'"),
        (lambda: LayerScheme(0.5, selection="rank"), "expected one of 'ewma', 'ewma_sequential'"),
        (lambda: LayerScheme(ewma_multiplier="x"), "ewma_multiplier='x'"),
        (lambda: HWPQConfig(kv_cache_dtype="int4"), "kv_cache_dtype='int4'"),
        (lambda: HWPQConfig(group_policy="guess"), "group_policy='guess'"),
        (lambda: HWPQConfig(default="2:4"), "default='2:4': expected a LayerScheme"),
        (lambda: HWPQConfig.preset("best"), "preset='best': expected one of 'accurate', 'fast', 'small'"),
        (lambda: HWPQConfig(ignore=["["]), "not a regular expression"),
        (lambda: HWPQConfig(ignore="lm_head"), "ignore='lm_head': expected a list of regular expressions"),
        (lambda: HWPQConfig(overrides=None), "overrides=None: expected a mapping"),
        (lambda: HWPQConfig(overrides={"(": LayerScheme()}), "not a regular expression"),
        (lambda: HWPQConfig(lm_head=LayerScheme()), "lm_head=2:4 int8"),
        (lambda: HWPQConfig(lm_head=LayerScheme("auto")), "lm_head=auto int8"),
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


@pytest.mark.parametrize("sparsity", ["4:4", "0:4", "02:4", "2:128", "2 of 4", "", 0.0, 1.0, 1, float("nan"), True])
def test_impossible_sparsities_are_refused(sparsity):
    with pytest.raises(ConfigError, match=r"^sparsity=.*expected"):
        LayerScheme(sparsity=sparsity)


def test_what_is_left_open_gets_its_usual_value():
    assert LayerScheme(dtype="int4").group == 64
    assert LayerScheme(dtype="int4", group_size=-1).group is None
    assert LayerScheme().group is None
    assert dataclasses.replace(LayerScheme(dtype="int4"), sparsity=0.5, dtype="float16").group is None
    assert copy.deepcopy(HWPQConfig(overrides={"a": LayerScheme()})) == HWPQConfig(overrides={"a": LayerScheme()})
    assert [str(LayerScheme(s, d)) for s, d in (("2:4", "int4"), (0.5, "int8"), (None, "float16"))] == [
        "2:4 int4 g64",
        "50% int8",
        "dense float16",
    ]


def test_presets_ship_and_are_what_they_are_called():
    assert presets() == ("accurate", "fast", "small")
    assert str(HWPQConfig.preset("accurate").default) == "dense int8"
    assert str(HWPQConfig.preset("fast").default) == "2:4 int8"
    assert str(HWPQConfig.preset("small").default) == "dense int4 g64"
