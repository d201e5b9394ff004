import pytest
from tiny_model import V, random_weights

from hwpq_tvm import benchmark as module
from hwpq_tvm.benchmark import benchmark, compare
from hwpq_tvm.errors import GenerationError


def test_figures_come_from_medians_of_what_was_measured(tiny, monkeypatch):
    turns = iter([(100.0, 100.0), (2.0, 8.0), (1.0, 16.0), (4.0, 4.0)])
    monkeypatch.setattr(module, "_measure", lambda *_: next(turns))
    result = benchmark(tiny(*random_weights(0)), prompt_length=12, new_tokens=8, repeat=3)
    assert result.prefill_tokens_per_second == 12 / 2
    assert result.decode_tokens_per_second == 8 / 8
    assert result.weight_bytes == 2 * V * V * 4


def test_models_are_measured_in_turns(tiny, monkeypatch):
    order = []
    sessions = {}

    def measure(session, ids, new_tokens):
        order.append(sessions.setdefault(id(session), len(sessions)))
        return 1.0, 1.0

    monkeypatch.setattr(module, "_measure", measure)
    models = {name: tiny(*random_weights(0)) for name in "abc"}
    compare(models, prompt_length=4, new_tokens=4, repeat=2)
    assert order == [0, 1, 2] * 3


def test_json_of_a_real_measurement(tiny):
    model = tiny(*random_weights(0))
    model.threads = 1
    value = benchmark(model, prompt_length=10, new_tokens=5, repeat=2).to_json()
    assert value.pop("prefill_tokens_per_second") > 0
    assert value.pop("decode_tokens_per_second") > 0
    assert value == {"weight_bytes": 2 * V * V * 4, "threads": 1, "prompt_length": 10, "new_tokens": 5, "repeat": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat": 0}, "repeat=0: expected at least 1"),
        ({"new_tokens": 0}, "new_tokens=0"),
        ({"prompt_length": 20, "new_tokens": 5}, "prompt_length=20 and new_tokens=5 don't fit max_seq_len=24"),
    ],
)
def test_bad_requests(tiny, options, message):
    with pytest.raises(GenerationError, match=message):
        benchmark(tiny(*random_weights(0)), **{"prompt_length": 4, "new_tokens": 4, **options})
