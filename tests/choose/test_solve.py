"""The search around builds, with builds that cost nothing: what is learned of one goes into the next."""

import math
from types import SimpleNamespace

import pytest

from hwpq_tvm.choose.budget import Budget
from hwpq_tvm.choose.solve import MOST_BUILDS, solve
from hwpq_tvm.choose.workbench import Checked
from hwpq_tvm.errors import ConfigError

LOSSES = {"dense int8": 0.0002, "dense int4": 0.004, "2:4 int8": 0.02}
SECONDS = {"dense int8": 1e-4, "dense int4": 6e-5, "2:4 int8": 5e-5}
BYTES = {"dense int8": 1000, "dense int4": 530, "2:4 int8": 640}


class Bench:
    """Twenty units; predicted losses are off by a factor, and compiled models lose something besides."""

    sequences, rest_bytes, scale, float_perplexity = 1, 300, 1.0, 10.0
    uniform_loss = None  # what dense int4 everywhere loses, where that is not the sum of its parts

    def __init__(self, factor=1.0, extra=0.0, overhead=1e-3, absolute=True):
        self.factor, self.extra, self.true_overhead, self.overhead = factor, extra, overhead, 2e-4
        self.units = [SimpleNamespace(name=f"u{n}", options=dict(LOSSES), nbytes=BYTES.get) for n in range(20)]
        scale = {unit.name: 1 + number / 10 for number, unit in enumerate(self.units)}
        self.sensitivity = SimpleNamespace(
            losses={name: {o: loss * s for o, loss in LOSSES.items()} for name, s in scale.items()}
        )
        self.times = SimpleNamespace(
            seconds={name: SECONDS for name in scale}, absolute=absolute, source="measured here"
        )
        self.base = SimpleNamespace(activations="int8")
        self.built = []

    def everywhere(self, candidate):
        return {unit.name: candidate if candidate in LOSSES else "dense int4" for unit in self.units}

    def weights_increase(self, chosen):
        if self.uniform_loss is not None and set(chosen.values()) == {"dense int4"}:
            return self.uniform_loss
        return self.factor * sum(self.sensitivity.losses[name][option] for name, option in chosen.items())

    def seconds(self, chosen):
        return sum(SECONDS[option] for option in chosen.values())

    def build(self, chosen):
        self.overhead = self.true_overhead
        self.built.append(chosen)
        speed = 1 / (self.seconds(chosen) + self.true_overhead)
        return Checked(chosen, None, self.weights_increase(chosen) + self.extra, speed)


@pytest.mark.parametrize("factor", [0.6, 1.0, 2.5])
@pytest.mark.parametrize("extra", [0.0, 0.03])
@pytest.mark.parametrize("share", [0.06, 0.1, 0.2])
def test_the_choice_keeps_to_its_perplexity_and_uses_what_it_may(factor, extra, share):
    bench = Bench(factor, extra)
    _, checked = solve(bench, Budget.of(share, None, None))
    assert len(bench.built) <= MOST_BUILDS
    assert len(checked) == len(bench.built)
    increase = checked[-1].increase
    assert increase <= math.log1p(share)
    assert increase >= 0.7 * math.log1p(share) or set(checked[-1].chosen.values()) == {"2:4 int8"}


def test_a_perplexity_that_nothing_keeps_to_is_refused_with_the_best():
    bench = Bench(extra=0.05)
    with pytest.raises(ConfigError, match=r"1 % can't be kept to; the best of what was built \(1\) has 6.0 %"):
        solve(bench, Budget.of(0.01, None, None))
    assert set(bench.built[-1].values()) == {"dense int8"}


def test_one_scheme_everywhere_is_the_choice_where_it_is_faster_and_keeps_to_the_budget():
    bench = Bench()
    bench.uniform_loss = 0.09
    _, checked = solve(bench, Budget.of(0.1, None, None))
    assert set(checked[-1].chosen.values()) == {"dense int4"}
    assert len(checked) > 1
    assert all(bench.seconds(each.chosen) > bench.seconds(checked[-1].chosen) for each in checked[:-1])


def test_a_size_is_kept_to_with_one_build():
    bench = Bench()
    _, checked = solve(bench, Budget.of(None, 300 + 15_000, None))
    assert len(checked) == 1
    chosen = checked[0].chosen.values()
    assert 14_000 < sum(BYTES[option] for option in chosen) <= 15_000
    assert "2:4 int8" not in chosen  # larger than dense int4, and less accurate
    # Units that lose the least by it are the ones that are stored in fewer bits.
    assert [option == "dense int4" for option in chosen] == sorted((o == "dense int4" for o in chosen), reverse=True)
    with pytest.raises(ConfigError, match=r"the smallest that the schemes come to is 0.0 MB"):
        solve(bench, Budget.of(None, 10_000, None))


def test_a_speed_is_reached_once_a_build_has_shown_what_a_step_takes_besides():
    bench = Bench()
    _, checked = solve(bench, Budget.of(None, None, 400.0))
    assert len(checked) == 2
    assert checked[0].tokens_per_second < 400 <= checked[-1].tokens_per_second < 410
    with pytest.raises(ConfigError, match=r"500.1 tokens/s were not reached; .* \(2\) decodes 500.0"):
        solve(Bench(), Budget.of(None, None, 500.1))
    with pytest.raises(ConfigError, match="so no speed is known"):
        solve(Bench(absolute=False), Budget.of(None, None, 100.0))
