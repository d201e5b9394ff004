"""`generate_batch`: every answer is the one that its prompt gets alone."""

import numpy as np
import pytest
from tiny_model import EOS, MAX_SEQ_LEN, Reference, V, chain, random_weights

from hwpq_tvm.errors import GenerationError


def run(generation):
    """Pieces of each prompt, in their order."""
    pieces = {}
    for row, piece in generation:
        pieces.setdefault(row, []).append(piece)
    return pieces


@pytest.mark.parametrize("count", [1, 2, 3])
def test_greedy_ids_are_those_of_single_runs(tiny_batch, count):
    weights = random_weights(3)
    prompts = [[3, 200, 41, 7, 9], [5], np.array([100, 101, 102])][:count]
    generation = tiny_batch(*weights).generate_batch(prompts, max_new_tokens=9)
    expected = [Reference(*weights).greedy(list(prompt), 9) for prompt in prompts]
    assert run(generation) == dict(enumerate(expected))
    assert generation.token_ids == expected
    assert generation.stop_reasons == ["max_new_tokens"] * count
    assert len({tuple(answer) for answer in expected}) == count


def test_answers_end_on_their_own(tiny_batch):
    # After 7 come 8, 9 and the end; 100 to 120 go round.
    weights = chain(7, 8, 9, EOS)
    for token in range(100, 121):
        weights[0][token, 100 + (token + 1 - 100) % 21] = 10
    long = list(range(100, 100 + MAX_SEQ_LEN - 4))
    generation = tiny_batch(*weights).generate_batch([[7], long, [101, 100]], max_new_tokens=8)
    answers = run(generation)
    assert answers == {0: [8, 9], 1: [120, 100, 101, 102, 103], 2: [101, 102, 103, 104, 105, 106, 107, 108]}
    assert generation.stop_reasons == ["end of text", "max_seq_len", "max_new_tokens"]


def test_tokens_come_as_they_are_computed(tiny_batch):
    generation = tiny_batch(*chain(7, 8, 9, EOS)).generate_batch([[7], [8]], max_new_tokens=4)
    assert next(generation) == (0, 8)
    assert generation.token_ids == [[8], [9]]
    assert list(generation) == [(1, 9), (0, 9)]


def test_texts_are_streamed_in_whole_characters(tiny_batch):
    smile, e_acute = "😀".encode(), "é".encode()
    model = tiny_batch(*chain(ord("a"), *smile, ord("b"), *e_acute, EOS))
    generation = model.generate_batch(["a", "b", "xa"])
    assert run(generation) == {0: ["😀", "b", "é"], 1: ["é"], 2: ["😀", "b", "é"]}
    assert generation.stop_reasons == ["end of text"] * 3
    cut = model.generate_batch(["b", "a"], max_new_tokens=3)
    assert {row: "".join(pieces) for row, pieces in run(cut).items()} == {0: "é", 1: "�"}


def test_sampling_is_that_of_single_runs_with_seeds_in_a_row(tiny_batch):
    model = tiny_batch(*random_weights(9))
    prompts = [[1, 2, 3], [1, 2, 3], [9]]
    options = {"max_new_tokens": 8, "temperature": 2.0, "top_p": 0.9}
    batch = model.generate_batch(prompts, seed=4, **options)
    run(batch)
    for row, prompt in enumerate(prompts):
        assert batch.token_ids[row] == list(model.generate(prompt, seed=4 + row, **options))
    assert batch.token_ids[0] != batch.token_ids[1]


def test_chat_puts_each_message_into_the_template(tiny_batch):
    model = tiny_batch(*random_weights(8))
    ids = model.generate_batch([list(b"[user]hi:"), list(b"[user]you:")], max_new_tokens=5)
    texts = model.generate_batch(["hi", "you"], max_new_tokens=5, chat=True)
    run(ids)
    run(texts)
    assert texts.token_ids == ids.token_ids


def test_one_prompt_of_a_model_for_several(tiny_batch):
    weights = random_weights(5)
    model = tiny_batch(*weights)
    generation = model.generate([1, 2, 3], max_new_tokens=30)
    assert list(generation) == generation.token_ids == Reference(*weights).greedy([1, 2, 3], 22)
    assert generation.stop_reason == "max_seq_len"
    assert "".join(model.generate("ab", max_new_tokens=4))


def test_calls_take_several_sequences_of_one_length(tiny_batch):
    weights = random_weights(6)
    ids = np.random.default_rng(0).integers(0, V, (2, 7))
    expected = np.stack([Reference(*weights).logits(list(row)) for row in ids])
    model = tiny_batch(*weights)
    np.testing.assert_allclose(model(ids), expected, atol=1e-5)
    np.testing.assert_allclose(model(ids[1]), expected[1], atol=1e-5)
    with pytest.raises(GenerationError, match="4 sequences at once: the model was compiled for max_batch=3"):
        model(np.zeros((4, 2), np.int64))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("abc", {}, "prompts is one text: expected a list"),
        ([], {}, "there are no prompts"),
        (["a", [1]], {}, "some prompts are texts and some are token ids"),
        ([[1]] * 4, {}, "found 4 prompts: the model was compiled for max_batch=3"),
        ([[1], [2, V]], {}, r"prompts\[1\]: token id 258 is out of the vocabulary"),
        ([[1], []], {}, r"prompts\[1\]: the prompt is empty"),
        (["a", ""], {}, r"prompts\[1\]: the prompt is empty"),
        ([1, 2], {}, r"prompts\[0\]: the prompt is an array of shape \(\)"),
        ([[1], [2]], {"chat": True}, "chat=True needs a text"),
        ([[1], [2]], {"seed": -1}, "seed=-1"),
        ([[1], [2]], {"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_bad_requests_are_refused_at_once(tiny_batch, prompts, options, message):
    with pytest.raises(GenerationError, match=message):
        tiny_batch(*random_weights(0)).generate_batch(prompts, **options)


def test_texts_without_a_tokenizer(tiny_batch):
    weights = random_weights(0)
    model = tiny_batch(*weights, tokenizer=False)
    with pytest.raises(GenerationError, match=r"no tokenizer .*token ids can"):
        model.generate_batch(["a", "b"])
    generation = model.generate_batch([[97], [98]], max_new_tokens=3)
    assert run(generation) == {row: Reference(*weights).greedy([97 + row], 3) for row in range(2)}
