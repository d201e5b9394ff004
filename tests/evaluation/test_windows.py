import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwpq_tvm.errors import GenerationError
from hwpq_tvm.evaluation.windows import Window, check_ids, cut


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        (10, {}, [Window(0, 4, 1), Window(4, 8, 5), Window(8, 10, 9)]),
        (9, {}, [Window(0, 4, 1), Window(4, 8, 5)]),  # the last token alone predicts nothing
        (10, {"stride": 2}, [Window(0, 4, 1), Window(2, 6, 4), Window(4, 8, 6), Window(6, 10, 8)]),
        (9, {"stride": 3}, [Window(0, 4, 1), Window(3, 7, 4), Window(6, 9, 7)]),
        (10, {"count": 2}, [Window(0, 4, 1), Window(4, 8, 5)]),
        (10, {"count": 2, "stride": 1}, [Window(0, 4, 1), Window(1, 5, 4)]),
        (3, {}, [Window(0, 3, 1)]),
    ],
)
def test_windows_of_four(tokens, options, expected):
    assert cut(tokens, 4, **options) == expected


@given(st.integers(2, 200), st.integers(2, 40), st.data())
def test_every_token_counts_once_and_has_the_context_that_was_asked_for(tokens, length, data):
    stride = data.draw(st.integers(1, length))
    windows = cut(tokens, length, stride=stride)
    counted = [token for window in windows for token in range(window.first, window.stop)]
    # Without an overlap the first token of a window is predicted from nothing, so it does not count.
    lost = range(0, tokens, length) if stride == length else [0]
    assert counted == sorted(set(range(tokens)) - set(lost))
    for window in windows:
        assert window.start < window.first < window.stop <= window.start + length
        assert window.start == 0 or window.first - window.start >= max(length - stride, 1)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (1, {}, "the text has 1 tokens, at least 2 are needed"),
        (9, {"count": 3, "stride": 3}, "the text has 9 tokens, at least 10 are needed"),
        (9, {"count": 0}, "windows=0"),
        (9, {"stride": 0}, "stride=0: expected 1 to 4, the window_length"),
        (9, {"stride": 5}, "stride=5: expected 1 to 4"),
    ],
)
def test_bad_numbers(tokens, options, message):
    with pytest.raises(GenerationError, match=message):
        cut(tokens, 4, **options)


def test_ids():
    np.testing.assert_array_equal(check_ids([0, 4], 5), [0, 4])
    assert check_ids([], 5).size == 0
    for bad in ([[1]], [0.5], [5], [-1]):
        with pytest.raises(GenerationError):
            check_ids(bad, 5)
