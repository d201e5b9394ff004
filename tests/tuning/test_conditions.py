"""Conditions and measurements: what they refuse, their figures, their way through JSON."""

import pytest

from hwpq_tvm.errors import ConfigError
from hwpq_tvm.tuning.conditions import Conditions, Measurement, read_measurements, write_measurements


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"samples": 0}, {"footprint": -1}, {"sample_seconds": 0.0}])
def test_conditions_out_of_range_are_named(wrong: dict):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Conditions(**{"threads": 1, **wrong})


def test_both_survive_json():
    conditions = Conditions(threads=3, footprint=1 << 20, sample_seconds=0.01, samples=5, device="cuda:1")
    assert Conditions.from_json(conditions.to_json()) == conditions
    measurements = [Measurement("ok", (1e-5, 2e-5), None, "a board", 0.5, 0.1), Measurement("lost", error="gone")]
    assert read_measurements(write_measurements(measurements)) == measurements


def test_figures_of_samples():
    measurement = Measurement("ok", (4.0, 1.0, 2.0, 3.0, 100.0))
    assert (measurement.median, measurement.spread) == (3.0, pytest.approx(2 / 3))
    assert Measurement("ok", (4.0,)).spread is None
    assert Measurement("failed", error="broken").median is None
