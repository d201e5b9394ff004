"""Units of a small model, and the configuration that a choice comes to."""

import pytest

from hwpq_tvm.choose.units import CANDIDATES, config_of, find_units, uniform
from hwpq_tvm.config import HWPQConfig
from hwpq_tvm.errors import ConfigError
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.packing import packing_groups
from hwpq_tvm.relax_passes.plan import Plan
from tests.relax_passes.models import ENTRIES, TinyLM, UntiedLM

BASE = HWPQConfig(group_policy="pad")


def plan(module, config):
    return make_plan(module, ENTRIES, config, calibrated=True)


def units_of(module, base=BASE):
    plans = {candidate.name: plan(module, candidate.config(base)) for candidate in CANDIDATES}
    return find_units(plans, {"q": 1.0, "k": 1.0, "odd": 2.0})


def test_what_runs_as_one_kernel_is_a_unit_with_the_schemes_that_it_can_have():
    units = {unit.name: unit for unit in units_of(TinyLM)}
    assert {name: tuple(unit.options) for name, unit in units.items()} == {
        "q+k": ("dense int8", "dense int4", "2:4 int8", "2:4 int4"),
        "odd": ("dense int8", "dense int4"),  # 33 in_features are not whole groups of four
        "embed": ("dense int8", "dense int4"),  # the tied head is not pruned
    }
    assert units["q+k"].weights == ("q", "k")
    assert units["q+k"].count == (24 + 9) * 16
    assert (units["odd"].runs, units["embed"].runs) == (2, 0)


def test_bytes_are_those_of_the_packed_parameters():
    for unit in units_of(TinyLM):
        for option, groups in unit.options.items():
            bits = sum(m.format.bits_per_weight(m.N, m.K) * m.N * m.K for group in groups for m in group.members)
            assert unit.nbytes(option) == bits / 8


@pytest.mark.parametrize("module", [TinyLM, UntiedLM])
@pytest.mark.parametrize("turn", range(4))
def test_the_configuration_plans_what_was_chosen(module, turn):
    units = units_of(module)
    chosen = {u.name: list(u.options)[(turn + number) % len(u.options)] for number, u in enumerate(units)}
    heads = frozenset({"embed"} if module is TinyLM else {"head"})
    planned = plan(module, config_of(BASE, units, chosen, heads))
    expected = {group for unit in units for group in unit.options[chosen[unit.name]]}
    assert set(packing_groups(planned)) == expected


def test_one_scheme_everywhere_is_dense_where_there_is_no_other():
    assert uniform(units_of(TinyLM), "2:4 int4") == {"q+k": "2:4 int4", "odd": "dense int4", "embed": "dense int4"}


def test_ignored_layers_stay_dense():
    units = {unit.name: unit for unit in units_of(TinyLM, HWPQConfig(group_policy="pad", ignore=("q", "k")))}
    assert tuple(units["q+k"].options) == ("dense int8", "dense int4")


def test_a_model_without_a_layer_to_compress_is_refused():
    with pytest.raises(ConfigError, match="no layer to be compressed"):
        find_units({"dense int8": Plan(())}, {})
