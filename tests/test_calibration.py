"""Calibration: what windows are read, and that the sums are those of the model's own activations."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from hwpq_tvm.calibration import calibration_windows, observe
from hwpq_tvm.errors import CalibrationError
from hwpq_tvm.importers import import_model
from tests.tiny_hf import tiny_llama


def with_tokenizer(max_seq_len=64, vocab_size=1000):
    """Something with a tokenizer of words `w0` to `w999`, each its own number."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return SimpleNamespace(
        tokenizer_files={"tokenizer.json": json.dumps(json.loads(tokenizer.to_str())).encode()},
        metadata=SimpleNamespace(max_seq_len=max_seq_len, vocab_size=vocab_size),
    )


def text_file(tmp_path, count):
    path = tmp_path / "calibration.txt"
    path.write_text(" ".join(f"w{i}" for i in range(count)))
    return path


def test_windows_are_spread_over_the_text(tmp_path):
    windows, source = calibration_windows(text_file(tmp_path, 100), with_tokenizer(), windows=3, window_length=10)
    assert [list(window) for window in windows] == [
        list(range(0, 10)),
        list(range(40, 50)),
        list(range(90, 100)),
    ]
    assert source.endswith("calibration.txt")


@pytest.mark.parametrize(
    ("count", "max_seq_len", "lengths"),
    [(25, 64, [10, 10]), (7, 64, [7]), (1, 64, [1]), (30, 6, [6, 6, 6])],
)
def test_windows_are_never_longer_than_the_text_or_the_cache(tmp_path, count, max_seq_len, lengths):
    windows, _ = calibration_windows(
        text_file(tmp_path, count), with_tokenizer(max_seq_len), windows=3, window_length=10
    )
    assert [len(window) for window in windows] == lengths


def test_the_text_that_ships_is_long_enough():
    windows, source = calibration_windows("default", with_tokenizer(512))
    assert [len(window) for window in windows] == [512] * 8
    assert "ships" in source


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, words):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError) as error:
        calibration_windows(path, with_tokenizer())
    assert words in str(error.value)
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


def test_without_a_tokenizer_text_is_refused():
    imported = SimpleNamespace(tokenizer_files={}, metadata=SimpleNamespace(max_seq_len=8))
    with pytest.raises(CalibrationError, match=r"tokenizer\.json"):
        calibration_windows("default", imported)


def test_sums_are_those_of_the_models_own_activations():
    model = tiny_llama(tie_word_embeddings=False)
    expected, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def add(_, inputs, name=name):
                x = inputs[0].detach().double()
                expected[name] = expected.get(name, 0) + (x**2).sum(dim=(0, 1)).numpy()

            hooks.append(module.register_forward_pre_hook(add))
    rng = np.random.default_rng(5)
    windows = [rng.integers(0, 101, length) for length in (17, 5)]
    with torch.no_grad():
        for window in windows:
            model(torch.from_numpy(window[None]))
    for hook in hooks:
        hook.remove()

    observed = {f"{name}.weight": f"sum of {name}" for name in expected}
    found = observe(import_model(model, max_seq_len=32), observed, windows, "a test", progress=False)
    assert found.tokens == 22
    assert set(found.sums) == set(observed.values())
    for name, sums in expected.items():
        np.testing.assert_allclose(found.sums[f"sum of {name}"], sums, rtol=1e-4)
