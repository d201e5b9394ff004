"""Stages: which layers are calibrated together."""

import pytest

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.packing import packing_groups
from hwpq_tvm.stages import parts, passes
from tests.relax_passes.models import ENTRIES, TinyLM

# Bytes of the float64 Gram matrices of the inputs of q and odd.
GRAMS = 8 * (16 * 16 + 33 * 33)


def names(config, *, memory_budget=1 << 30, sequential=False):
    groups = packing_groups(make_plan(TinyLM, ENTRIES, config, calibrated=True))
    found = [together for part in parts(groups, sequential=sequential) for together in passes(part, memory_budget)]
    assert sorted(group.name for stage in found for group in stage) == sorted(group.name for group in groups)
    return [[linear.name for group in stage for linear in group.members] for stage in found]


CG = LayerScheme(reconstruct="cg")
BOTH = HWPQConfig(default=CG, overrides={"odd": LayerScheme(0.5, reconstruct="cg")})


@pytest.mark.parametrize("config", [HWPQConfig(default=LayerScheme(None)), HWPQConfig(default=CG), BOTH])
def test_one_stage_where_memory_is_enough(config):
    assert names(config) == [["q", "k", "odd", "embed"]]


def test_a_stage_holds_no_more_gram_matrices_than_fit():
    assert names(BOTH, memory_budget=GRAMS) == [["q", "k", "odd", "embed"]]
    # What asks for no Gram matrix goes with the first ones.
    assert names(BOTH, memory_budget=GRAMS - 1) == [["q", "k", "embed"], ["odd"]]
    assert names(BOTH, memory_budget=0) == [["q", "k", "embed"], ["odd"]]


def test_sequential_stages_follow_the_model():
    assert names(BOTH, sequential=True) == [["q", "k"], ["odd"], ["embed"]]


def test_nothing_to_do_is_no_stage():
    assert parts([], sequential=True) == parts([], sequential=False) == []
