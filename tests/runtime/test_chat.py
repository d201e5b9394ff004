"""A conversation gives what its whole text gives, and computes only what is new."""

import json

import numpy as np
import pytest
from tiny_model import EOS, MAX_SEQ_LEN, Reference, V, chain, random_weights

from hwpq_tvm.errors import GenerationError
from hwpq_tvm.runtime.chat import common_prefix

# Short, since the tiny model holds 24 tokens: u, a or s before each message.
TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }}{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)


def words(seed):
    """Random weights of a model that writes small letters only, so that its answers are read as they were written."""
    table, history = random_weights(seed)
    others = np.setdiff1d(np.arange(V), list(b"abcdefghijklmnopqrstuvwxyz"))
    table[:, others] -= 1000
    return table, history


def with_template(model, template=TEMPLATE):
    files = dict(model.tokenizer_files)
    files["tokenizer_config.json"] = json.dumps({"chat_template": template} if template else {}).encode()
    model.tokenizer_files = files
    return model


@pytest.fixture
def prefills(monkeypatch):
    """Function: model -> list that gets the number of tokens of each prefill of it."""

    def record(model):
        read, call = [], model.call

        def counting(entry, *inputs):
            if entry == "prefill":
                read.append(inputs[0].shape[1])
            return call(entry, *inputs)

        monkeypatch.setattr(model, "call", counting)
        return read

    return record


def answer(weights, text, count):
    return bytes(Reference(*weights).greedy(list(text.encode()), count)).decode()


@pytest.mark.parametrize("batch", [1, 3])
def test_each_answer_is_that_to_the_whole_conversation(tiny, tiny_batch, prefills, batch):
    weights = words(1)
    model = with_template({1: tiny, 3: tiny_batch}[batch](*weights))
    read = prefills(model)
    chat = model.chat("S")
    said = "sSuhi:"
    first = "".join(chat.send("hi", max_new_tokens=3))
    assert first == answer(weights, said, 3)
    assert read == [len(said)]

    more = f"sSuhia{first}uyo:"
    second = "".join(chat.send("yo", max_new_tokens=2))
    assert second == answer(weights, more, 2)
    # "sSuhi" is all that the texts share: the mark of an answer was ":", and is "a" now.
    assert read == [6, len(more) - 5]
    assert chat.messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "yo"},
        {"role": "assistant", "content": second},
    ]
    assert chat.dropped_turns == 0


def test_what_the_cache_holds_is_not_read_again(tiny, prefills):
    weights = words(2)
    # An answer stands in the history as it was written: only its last token was never read.
    model = with_template(tiny(*weights), "{% for message in messages %}{{ message.content }};{% endfor %}")
    read, chat = prefills(model), None
    chat = model.chat()
    first = "".join(chat.send("ab", max_new_tokens=4))
    assert first == answer(weights, "ab;", 4)
    second = "".join(chat.send("c", max_new_tokens=4))
    assert second == answer(weights, f"ab;{first};c;", 4)
    assert read == [3, len(f"{first[-1]};c;")]
    # The same text again is in the cache as a whole; its last token is read for the logits that follow it.
    chat.reset()
    assert chat.messages == []
    assert "".join(chat.send("ab", max_new_tokens=4)) == first
    assert read[2:] == [1]


def test_an_answer_that_is_not_read_to_its_end_is_left_as_it_is(tiny):
    weights = words(3)
    chat = with_template(tiny(*weights)).chat()
    first = chat.send("a", max_new_tokens=9)
    pieces = next(first) + next(first)
    assert chat.messages[-1] == {"role": "assistant", "content": pieces}
    assert first.stop_reason is None
    second = chat.send("b", max_new_tokens=3)
    assert list(first) == []
    assert first.stop_reason == "closed"
    assert "".join(second) == answer(weights, f"uaa{pieces}ub:", 3)
    never_read = chat.send("c")
    assert chat.messages[-1] == {"role": "assistant", "content": ""}
    never_read.close()
    assert list(never_read) == []


def test_oldest_turns_are_forgotten_when_the_cache_is_full(tiny):
    weights = words(4)
    chat = with_template(tiny(*weights)).chat("S")
    answers = ["".join(chat.send(text, max_new_tokens=4)) for text in ("abc", "def")]
    assert chat.dropped_turns == 0
    # sS uabc a.... udef a.... ughi : are 25 of 24 tokens, without those of an answer.
    third = "".join(chat.send("ghi", max_new_tokens=4))
    assert chat.dropped_turns == 1
    assert third == answer(weights, f"sSudefa{answers[1]}ughi:", 4)
    assert [message["content"] for message in chat.messages] == ["S", "def", answers[1], "ghi", third]
    # A long message leaves room for nothing but itself.
    last = chat.send("x" * 18, max_new_tokens=9)
    assert "".join(last) == answer(weights, f"sSu{'x' * 18}:", 3)
    assert last.stop_reason == "max_seq_len"
    assert chat.dropped_turns == 3


def test_a_message_that_does_not_fit_is_refused_and_nothing_is_forgotten(tiny):
    weights = words(5)
    chat = with_template(tiny(*weights)).chat()
    first = "".join(chat.send("a", max_new_tokens=3))
    with pytest.raises(GenerationError, match=f"the prompt has 32 tokens.*max_seq_len={MAX_SEQ_LEN}"):
        chat.send("x" * 30)
    for options in ({"temperature": -1}, {"max_new_tokens": 0}, {"top_p": 0}):
        with pytest.raises(GenerationError, match=next(iter(options))):
            chat.send("b", **options)
    assert "".join(chat.send("b", max_new_tokens=3)) == answer(weights, f"uaa{first}ub:", 3)


def test_an_end_token_ends_the_answer(tiny):
    chat = with_template(tiny(*chain(ord(":"), *b"ok", EOS))).chat()
    for _ in range(2):
        reply = chat.send("a")
        assert ("".join(reply), reply.stop_reason) == ("ok", "end of text")


def test_sampling_follows_the_seed(tiny):
    model = with_template(tiny(*words(6)))
    found = {seed: "".join(model.chat().send("a", max_new_tokens=8, temperature=3.0, seed=seed)) for seed in (1, 2, 1)}
    assert found[1] != found[2]
    assert "".join(model.chat().send("a", max_new_tokens=8, temperature=3.0, seed=1)) == found[1]


def test_models_that_can_not_chat(tiny):
    with pytest.raises(GenerationError, match=r"no chat template.*hwpq run DIR --prompt TEXT"):
        with_template(tiny(*words(0)), None).chat()
    with pytest.raises(GenerationError, match="no chat template"):
        tiny(*words(0), tokenizer=False).chat()
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    with pytest.raises(GenerationError, match=r"chat template fails \(no system role\)"):
        with_template(tiny(*words(0)), no_system).chat("S").send("a")


@pytest.mark.parametrize(
    ("first", "second", "length"), [("", "", 0), ("abc", "abd", 2), ("ab", "abc", 2), ("abc", "ab", 2), ("x", "y", 0)]
)
def test_common_prefix(first, second, length):
    assert common_prefix(list(first), list(second)) == length
