"""What a model is calibrated on: which windows are read from text and token ids, and what is refused."""

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from hwpq_tvm.calibration_text import Calibration, calibration_windows
from hwpq_tvm.errors import CalibrationError


def with_tokenizer(max_seq_len=64, vocab_size=1000):
    """Something with a tokenizer of words `w0` to `w999`, each its own number."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return SimpleNamespace(
        tokenizer_files={"tokenizer.json": json.dumps(json.loads(tokenizer.to_str())).encode()},
        metadata=SimpleNamespace(causal_lm=SimpleNamespace(max_seq_len=max_seq_len, vocab_size=vocab_size)),
    )


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def text_file(tmp_path, count):
    path = tmp_path / "calibration.txt"
    path.write_text(words(*range(count)))
    return path


def lists(windows):
    assert all(ids.dtype == np.int64 for ids in windows.ids)
    return [ids.tolist() for ids in windows.ids]


def test_windows_are_spread_over_the_text(tmp_path):
    windows = calibration_windows(Calibration(text_file(tmp_path, 100), samples=3, length=10), with_tokenizer())
    assert lists(windows) == [list(range(0, 10)), list(range(40, 50)), list(range(90, 100))]
    assert windows.source.endswith("calibration.txt")
    assert windows.count == 30


@pytest.mark.parametrize(
    ("count", "max_seq_len", "lengths"),
    [(25, 64, [10, 10]), (7, 64, [7]), (1, 64, [1]), (30, 6, [6, 6, 6])],
)
def test_windows_are_never_longer_than_the_text_or_the_cache(tmp_path, count, max_seq_len, lengths):
    calibration = Calibration(str(text_file(tmp_path, count)), samples=3, length=10)
    windows = calibration_windows(calibration, with_tokenizer(max_seq_len))
    assert [len(ids) for ids in windows.ids] == lengths


def test_the_text_that_ships_is_long_enough():
    windows = calibration_windows("default", with_tokenizer(512))
    assert {len(ids) for ids in windows.ids} == {512}
    assert len(windows.ids) >= 8
    assert "ships" in windows.source


def test_each_string_is_a_window_of_its_own():
    texts = [words(5, 6, 7, 8), words(9)]
    windows = calibration_windows(Calibration(texts, samples=1, length=3), with_tokenizer())
    assert lists(windows) == [[5, 6, 7], [9]]
    assert windows.source == "2 texts given"
    assert lists(calibration_windows(tuple(texts), with_tokenizer(max_seq_len=2))) == [[5, 6], [9]]


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2, 3], [4, 5, 6]],
        np.array([[1, 2, 3], [4, 5, 6]], np.uint16),
        torch.tensor([[1, 2, 3], [4, 5, 6]]),
        [np.array([1, 2, 3]), torch.tensor([4, 5, 6], dtype=torch.int32)],
    ],
    ids=["lists", "array", "tensor", "list of arrays"],
)
def test_rows_of_token_ids_are_windows_as_they_are(rows):
    windows = calibration_windows(Calibration(rows, samples=1, length=2), with_tokenizer())
    assert lists(windows) == [[1, 2, 3], [4, 5, 6]]
    assert windows.source == "2 windows of token ids given"


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_a_flat_list_of_token_ids_is_cut_like_a_text(make):
    windows = calibration_windows(Calibration(make(list(range(50))), samples=2, length=7), with_tokenizer())
    assert lists(windows) == [list(range(0, 7)), list(range(42, 49))]
    assert windows.source == "50 token ids given"


@given(count=st.integers(1, 400), samples=st.integers(1, 9), length=st.integers(1, 70))
def test_windows_of_a_stream_never_overlap_and_reach_both_ends(count, samples, length):
    windows = calibration_windows(Calibration(np.arange(count), samples, length), with_tokenizer())
    found = lists(windows)
    length = min(length, 64)
    assert len(found) == min(samples, max(count // length, 1))
    assert {len(ids) for ids in found} == {min(length, count)}
    assert found[0][0] == 0
    assert all(after[0] > before[-1] for before, after in pairwise(found))
    if len(found) > 1:
        assert found[-1][-1] >= count - length


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "window without tokens"),
        (np.zeros((0, 4), int), "window without tokens"),
        (np.zeros((4, 0), int), "window without tokens"),
        ([[1, 2], []], "window without tokens"),
        ([1.5, 2.5], "float64 of 1 dimensions"),
        (np.zeros((2, 2), bool), "bool of 1 dimensions"),
        (np.zeros((2, 2, 2), int), "int64 of 3 dimensions"),
        (7, "int64 of 0 dimensions"),
        (["w1", 2], "type list"),
        ({"input_ids": [1]}, "object of 0 dimensions"),
        ([1, -1], "token -1 is none of the model's, which are 0 to 999"),
        ([[5], [1000]], "token 1000 is none"),
        ([[1] * 65], "65 tokens is longer than the model's max_seq_len of 64"),
    ],
)
def test_token_ids_that_make_no_sense_are_refused(source, message):
    with pytest.raises(CalibrationError, match=message):
        calibration_windows(source, with_tokenizer())


@pytest.mark.parametrize("options", [{"samples": 0}, {"length": -1}, {"samples": 2.0}, {"length": True}])
def test_odd_numbers_of_windows_are_refused(options):
    with pytest.raises(CalibrationError, match="expected a whole number of at least 1"):
        Calibration(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError) as error:
        calibration_windows(path, with_tokenizer())
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match="gives token 49, but the model knows 49 tokens"):
        calibration_windows(text_file(tmp_path, 50), with_tokenizer(vocab_size=49))


def test_a_text_without_tokens_is_refused(tmp_path):
    imported = with_tokenizer()
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    imported.tokenizer_files = {"tokenizer.json": tokenizer.to_str().encode()}
    (tmp_path / "text.txt").write_text("bcd")
    with pytest.raises(CalibrationError, match="makes no token of it"):
        calibration_windows(tmp_path / "text.txt", imported)
    with pytest.raises(CalibrationError, match=r"1 \(from 0\) of 2 texts given: the model's tokenizer makes no token"):
        calibration_windows(["a", "b"], imported)


def test_text_needs_a_tokenizer_and_token_ids_do_not():
    imported = SimpleNamespace(
        tokenizer_files={}, metadata=SimpleNamespace(causal_lm=SimpleNamespace(max_seq_len=8, vocab_size=10))
    )
    for text in ("default", ["some text"]):
        with pytest.raises(CalibrationError, match=r"tokenizer\.json"):
            calibration_windows(text, imported)
    assert lists(calibration_windows([[1, 2]], imported)) == [[1, 2]]
