"""The kernel that reads memory: it reads all of it, once."""

import numpy as np
import pytest

from hwpq_tvm.schedules.cpu.stream import LANES, STEP, read_streams

from ..reference import TARGETS, compiled


@pytest.mark.parametrize(("threads", "streams", "ahead"), [(1, 1, 0), (2, 3, 2560)])
def test_every_value_is_counted_once(threads: int, streams: int, ahead: int) -> None:
    length = 5 * STEP
    data = np.random.default_rng(threads).integers(-(2**31), 2**31, (threads, streams, length)).astype(np.int32)
    combined = np.full((threads, LANES), 7, np.int32)
    compiled(read_streams(threads, streams, length, ahead), TARGETS["avx2"])(data, combined)
    expected = np.bitwise_xor.reduce(data.reshape(threads, -1, LANES), axis=1)
    np.testing.assert_array_equal(combined, expected)
