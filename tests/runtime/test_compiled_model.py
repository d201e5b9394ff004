import threading

import numpy as np
import pytest
from tiny_model import EOS, MAX_SEQ_LEN, Reference, V, chain, random_weights

from hwpq_tvm.errors import ArtifactError, GenerationError


def test_call_gives_the_logits_of_every_position(tiny):
    weights = random_weights(1)
    ids = np.random.default_rng(2).integers(0, V, 17)
    model = tiny(*weights)
    expected = Reference(*weights).logits(list(ids))
    np.testing.assert_allclose(model(ids), expected, atol=1e-5)
    assert model(ids).dtype == np.float32
    np.testing.assert_allclose(model(ids[None]), expected[None], atol=1e-5)


def test_greedy_ids_follow_the_reference_through_prefill_and_decode(tiny):
    weights = random_weights(3)
    prompt = [3, 200, 41]
    generation = tiny(*weights).generate(prompt, max_new_tokens=9)
    ids = list(generation)
    assert ids == Reference(*weights).greedy(prompt, 9)
    assert len(set(ids)) > 1
    assert generation.stop_reason == "max_new_tokens"
    assert generation.token_ids == ids


def test_each_call_starts_from_an_empty_cache(tiny):
    weights = random_weights(4)
    model, reference = tiny(*weights), Reference(*weights)
    for prompt in ([5, 6, 7, 8, 9], [10], [11, 12]):
        assert list(model.generate(prompt, max_new_tokens=5)) == reference.greedy(prompt, 5)


def test_two_generations_at_once_do_not_share_a_cache(tiny):
    weights = random_weights(5)
    model, reference = tiny(*weights), Reference(*weights)
    streams = [model.generate([1, 2], max_new_tokens=6), model.generate([200], max_new_tokens=6)]
    pairs = list(zip(*streams, strict=True))
    assert [pair[0] for pair in pairs] == reference.greedy([1, 2], 6)
    assert [pair[1] for pair in pairs] == reference.greedy([200], 6)


def test_stops_at_the_end_token(tiny):
    generation = tiny(*chain(7, 8, 9, EOS)).generate([7])
    assert list(generation) == [8, 9]
    assert generation.stop_reason == "end of text"


def test_stops_when_the_cache_is_full(tiny):
    weights = random_weights(6)
    prompt = list(range(MAX_SEQ_LEN - 3))
    generation = tiny(*weights).generate(prompt, max_new_tokens=100)
    assert list(generation) == Reference(*weights).greedy(prompt, 4)
    assert generation.stop_reason == "max_seq_len"


def test_a_prompt_that_fills_the_cache_still_gives_one_token(tiny):
    weights = random_weights(7)
    prompt = list(range(MAX_SEQ_LEN))
    assert list(tiny(*weights).generate(prompt)) == Reference(*weights).greedy(prompt, 1)


def test_text_is_streamed_in_whole_characters(tiny):
    smile, e_acute = "😀".encode(), "é".encode()
    model = tiny(*chain(ord("a"), *smile, ord("b"), *e_acute, EOS))
    generation = model.generate("a")
    assert list(generation) == ["😀", "b", "é"]
    assert generation.token_ids == [*smile, ord("b"), *e_acute]
    assert generation.stop_reason == "end of text"


def test_a_character_cut_short_is_shown_as_such_at_the_end(tiny):
    model = tiny(*chain(ord("a"), *"b😀".encode(), EOS))
    assert "".join(model.generate("a", max_new_tokens=3)) == "b�"


def test_chat_puts_the_message_into_the_template(tiny):
    model = tiny(*random_weights(8))
    assert model.tokenizer.encode_chat("hi") == list(b"[user]hi:")
    ids = list(model.generate(list(b"[user]hi:"), max_new_tokens=5))
    generation = model.generate("hi", max_new_tokens=5, chat=True)
    list(generation)
    assert generation.token_ids == ids


def test_sampling_follows_seed_and_temperature(tiny):
    weights = random_weights(9)
    model = tiny(*weights)

    def draw(seed, temperature):
        return list(model.generate([1, 2, 3], max_new_tokens=12, temperature=temperature, seed=seed))

    assert draw(1, 2.0) == draw(1, 2.0)
    assert draw(1, 2.0) != draw(2, 2.0)
    assert draw(1, 1e-4) == Reference(*weights).greedy([1, 2, 3], 12)


def test_threads_can_be_set(tiny, monkeypatch):
    weights = random_weights(10)
    model = tiny(*weights)
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    assert model.threads == 1
    model.threads = 2
    assert list(model.generate([4], max_new_tokens=4)) == Reference(*weights).greedy([4], 4)
    with pytest.raises(GenerationError, match="threads=0: expected at least 1"):
        model.threads = 0


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ("", {}, "the prompt is empty"),
        (list(range(MAX_SEQ_LEN + 1)), {}, "25 tokens, the model was compiled for max_seq_len=24"),
        ([1, V], {}, r"token id 258 is out of the vocabulary: expected 0 to 257"),
        ([-1], {}, "token id -1 is out of the vocabulary"),
        ([0.5], {}, "expected a text, or a flat sequence of integer token ids"),
        ([[1, 2]], {}, r"shape \(1, 2\) .*several prompts are for generate_batch"),
        ([[1, 2], [3]], {}, "the prompt is no array .*several prompts are for generate_batch"),
        ([1], {"temperature": -0.1}, "temperature=-0.1"),
        ([1], {"temperature": float("nan")}, "temperature=nan"),
        ([1], {"top_p": 0.0}, "top_p=0.0"),
        ([1], {"top_p": 1.1}, "top_p=1.1"),
        ([1], {"seed": -1}, "seed=-1"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([1], {"chat": True}, "chat=True needs a text"),
    ],
)
def test_bad_requests_are_refused_at_once(tiny, prompt, options, message):
    model = tiny(*random_weights(0))
    with pytest.raises(GenerationError, match=message):
        model.generate(prompt, **options)


def test_text_without_a_tokenizer(tiny):
    weights = random_weights(0)
    model = tiny(*weights, tokenizer=False)
    with pytest.raises(GenerationError, match=r"no tokenizer .*token ids can"):
        model.generate("a")
    assert list(model.generate([97], max_new_tokens=3)) == Reference(*weights).greedy([97], 3)


def test_a_model_that_is_no_language_model(tiny):
    model = tiny(*random_weights(0), generation=None)
    with pytest.raises(GenerationError, match=r"TinyForCausalLM.* is not a causal language model"):
        model.generate([1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[:-1], r"weight table is float32 of shape \(257, 258\), the code expects float32"),
        (lambda table: table.astype(np.float16), "weight table is float16"),
    ],
)
def test_weights_that_do_not_fit(tiny, change, message):
    table, history = random_weights(0)
    with pytest.raises(ArtifactError, match=message):
        tiny(change(table), history)


def test_threads_take_turns_on_one_model(tiny):
    model = tiny(*random_weights(3))
    expected = list(model.generate([1, 2, 3], max_new_tokens=12))
    found = [None] * 4

    def generate(place):
        found[place] = list(model.generate([1, 2, 3], max_new_tokens=12))

    threads = [threading.Thread(target=generate, args=(place,)) for place in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * len(found)


def test_code_for_another_cpu_is_not_run(tiny, monkeypatch):
    monkeypatch.setattr("hwpq_tvm.runtime.compiled_model.missing_features", lambda required: ("avx512f",))
    model = tiny(*random_weights(3))
    with pytest.raises(GenerationError, match="this CPU lacks avx512f"):
        model([1, 2])
