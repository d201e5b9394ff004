import numpy as np
import pytest

from hwpq_tvm.runtime.generation import sampler


def probabilities(logits, temperature):
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max())
    return exponentials / exponentials.sum()


def frequencies(logits, draws=20000, **options):
    pick = sampler(options.get("temperature", 1.0), options.get("top_p", 1.0), 0)
    logits = np.asarray(logits, np.float32)
    return np.bincount([pick(logits) for _ in range(draws)], minlength=len(logits)) / draws


def test_zero_temperature_takes_the_first_of_the_largest():
    assert sampler(0.0, 1.0, None)(np.array([1, 3, 3, 2], np.float32)) == 1


def test_frequencies_follow_the_softmax():
    logits = [0.3, 2.0, -1.0, 1.1, 0.0]
    for temperature in (0.5, 1.0, 3.0):
        # Five standard deviations of a frequency over 20000 draws.
        np.testing.assert_allclose(
            frequencies(logits, temperature=temperature), probabilities(logits, temperature), atol=5 * 0.5 / 20000**0.5
        )


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = np.log([0.1, 0.5, 0.15, 0.25])
    np.testing.assert_allclose(frequencies(logits, top_p=0.7), [0, 2 / 3, 0, 1 / 3], atol=0.02)
    assert frequencies(logits, draws=200, top_p=0.4)[1] == 1
    assert (frequencies(logits, top_p=1.0) > 0).all()


def test_large_logits_do_not_overflow():
    assert sampler(1.0, 0.9, 0)(np.array([1e4, -1e4, 0], np.float32)) == 0


@pytest.mark.parametrize("temperature", [1e-308, 1e-30, 1e6])
def test_extreme_temperatures_are_no_trouble(temperature):
    token = sampler(temperature, 0.9, 0)(np.array([20.0, 1.0, 19.0], np.float32))
    assert token == 0 if temperature < 1 else token in (0, 1, 2)
