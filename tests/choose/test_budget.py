import pytest

from hwpq_tvm.choose.budget import Budget
from hwpq_tvm.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, None, None), "found none"),
        ((0.05, None, 100), "found max_perplexity_increase and target_speed"),
        ((0.0, None, None), "max_perplexity_increase=0.0: expected a number above 0"),
        ((None, float("nan"), None), "target_size=nan"),
        ((None, None, "fast"), "target_speed='fast'"),
    ],
)
def test_one_budget_is_needed(given, words):
    with pytest.raises(ConfigError) as error:
        Budget.of(*given)
    assert words in str(error.value)


def test_a_budget_says_what_it_is():
    assert str(Budget.of(0.05, None, None)) == "perplexity at most 5 % above that of the float model"
    assert str(Budget.of(None, 90e6, None)) == "weights of at most 90.0 MB"
    assert Budget.of(None, None, 180).to_json() == {"kind": "target_speed", "value": 180.0}
