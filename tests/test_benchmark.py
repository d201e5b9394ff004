import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_model import V, cache_shape, random_weights

from hwpq_tvm import benchmark as module
from hwpq_tvm.benchmark import Speed, compare, profile_steps
from hwpq_tvm.errors import GenerationError


def test_figures_come_from_medians_and_quartiles_of_what_was_measured(tiny, monkeypatch):
    # Of each turn, the first that does not count: a prompt of 12, then one of 6, then a context of 5.
    prefills = [(100.0, 100.0, 100.0), (2.0, 3.0, 50.0), (1.0, 6.0, 60.0), (4.0, 1.5, 70.0)]
    decodes = [(100.0, 100.0, 100.0), (50.0, 8.0, 1.0), (60.0, 16.0, 4.0), (70.0, 4.0, 2.0)]
    turns = iter([pair for turn in zip(prefills, decodes, strict=True) for pair in zip(*turn, strict=True)])
    asked = []
    monkeypatch.setattr(module, "_measure", lambda _, ids, new: asked.append((ids.shape, new)) or next(turns))
    options = {"prompt_lengths": (12, 6), "contexts": (6, 5), "new_tokens": 8, "repeat": 3}
    result = compare({"m": tiny(*random_weights(0))}, **options)["m"]
    assert asked == [((1, 12), 0), ((1, 6), 8), ((1, 5), 8)] * 4
    assert result.prefill == (Speed(12, 12 / 2, (12 / 3, 12 / 1.5)), Speed(6, 6 / 3, (6 / 4.5, 6 / 2.25)))
    assert result.decode == (Speed(6, 8 / 8, (8 / 12, 8 / 6)), Speed(5, 8 / 2, (8 / 3, 8 / 1.5)))
    assert (result.prefill_tokens_per_second, result.prompt_length) == (6, 12)
    assert (result.decode_tokens_per_second, result.context) == (1, 6)
    assert result.weight_bytes == 2 * V * V * 4
    assert result.peak_memory_bytes > result.weight_bytes


def test_models_are_measured_in_turns(tiny, monkeypatch):
    order = []
    sessions = {}

    def measure(session, ids, new_tokens):
        order.append((sessions.setdefault(id(session), len(sessions)), ids.shape[1]))
        return 1.0, 1.0

    monkeypatch.setattr(module, "_measure", measure)
    models = {name: tiny(*random_weights(0)) for name in "abc"}
    compare(models, prompt_lengths=(4, 2), new_tokens=4, repeat=2)
    assert order == [(model, length) for _ in range(3) for length in (4, 2) for model in (0, 1, 2)]


def test_json_of_a_real_measurement(tiny):
    model = tiny(*random_weights(0))
    model.threads = 1
    value = compare({"m": model}, prompt_lengths=(10, 3), new_tokens=5, repeat=2)["m"].to_json()
    for phase, length in (("prefill", "prompt_length"), ("decode", "context")):
        speeds = value.pop(phase)
        assert [speed[length] for speed in speeds] == [10, 3]
        assert all(0 < speed["quartiles"][0] <= speed["tokens_per_second"] <= speed["quartiles"][1] for speed in speeds)
        assert value.pop(f"{phase}_tokens_per_second") == speeds[0]["tokens_per_second"]
    assert value.pop("peak_memory_bytes") > 0
    # The tiny model has no linear layer: its table is read by ids, its history goes into the cache.
    assert value == {
        "weight_bytes": 2 * V * V * 4,
        "decode_weight_bytes": 0,
        "decode_weight_bytes_per_second": 0,
        "kv_cache_bytes": 4 * math.prod(cache_shape()),
        "device": "cpu",
        "threads": 1,
        "batch": 1,
        "prompt_length": 10,
        "context": 10,
        "new_tokens": 5,
        "repeat": 2,
    }


def test_tokens_of_all_sequences_count(tiny_batch, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_measure", lambda _, ids, new: seen.append((ids, new)) or (2.0, 4.0))
    result = compare({"m": tiny_batch(*random_weights(0))}, prompt_lengths=(10,), new_tokens=8, repeat=1)["m"]
    assert seen[0][0].shape == (3, 10) and len({tuple(row) for row in seen[0][0]}) == 3
    assert (result.batch, result.to_json()["batch"]) == (3, 3)
    assert (result.prefill_tokens_per_second, result.decode_tokens_per_second) == (3 * 10 / 2, 3 * 8 / 4)
    # The weights are read once for a token of each sequence.
    read = replace(result, decode_weight_bytes=1000)
    assert read.decode_bytes_per_second(read.decode[0]) == 1000 * 8 / 4


def test_all_sequences_are_measured(tiny_batch, monkeypatch):
    model, seen = tiny_batch(*random_weights(0)), set()
    call = model.call

    def watched(entry, *inputs):
        seen.add((entry, inputs[0].shape, tuple(np.from_dlpack(inputs[-2]))))
        return call(entry, *inputs)

    monkeypatch.setattr(model, "call", watched)
    compare({"m": model}, prompt_lengths=(7,), new_tokens=2, repeat=1)
    once = {("decode", (3, 1), (0, 0, 0))}  # to see which weights it reads
    assert seen == once | {("prefill", (3, 7), (0, 0, 0)), ("decode", (3, 1), (7,) * 3), ("decode", (3, 1), (8,) * 3)}
    seen.clear()
    profile_steps(model, prompt_length=5, context=20, repeat=1)
    assert seen == {("prefill", (3, 5), (0,) * 3), ("prefill", (3, 20), (0,) * 3), ("decode", (3, 1), (20,) * 3)}


def test_profiles_are_of_the_steps_that_were_asked_for(tiny, monkeypatch):
    model = tiny(*random_weights(0))
    seen = []
    call = model.call

    def watched(entry, *inputs):
        seen.append((entry, inputs[0].shape[1], int(np.from_dlpack(inputs[-2])[0])))
        return call(entry, *inputs)

    monkeypatch.setattr(model, "call", watched)
    profiles = profile_steps(model, prompt_length=7, context=20, repeat=2)
    assert set(profiles) == {"prefill", "decode"}
    assert set(seen) == {("prefill", 7, 0), ("prefill", 20, 0), ("decode", 1, 20)}
    assert all(profile.step_seconds > 0 for profile in profiles.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat": 0}, "repeat=0: expected at least 1"),
        ({"new_tokens": 0}, "new_tokens=0"),
        ({"contexts": (4, -1)}, "context=-1: expected at least 1"),
        ({"contexts": ()}, "no lengths"),
        ({"prompt_lengths": (20,), "new_tokens": 5}, "context=20 and new_tokens=5 don't fit max_seq_len=24"),
        ({"prompt_lengths": (2, 25), "contexts": (2,)}, "m: prompt_length=25 does not fit max_seq_len=24"),
    ],
)
def test_bad_requests(tiny, options, message):
    with pytest.raises(GenerationError, match=message):
        compare({"m": tiny(*random_weights(0))}, **{"prompt_lengths": (4,), "new_tokens": 4, **options})


def test_a_prompt_may_fill_the_cache_when_nothing_is_decoded_after_it(tiny):
    model = tiny(*random_weights(0))
    result = compare({"m": model}, prompt_lengths=(24,), contexts=(23,), new_tokens=1, repeat=1)["m"]
    assert (result.prompt_length, result.context) == (24, 23)
