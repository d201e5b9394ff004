"""What the emulators do beside computing: the complaints of a kernel come back."""

import numpy as np
import pytest

from hwpq_tvm.schedules.layouts.tiles import activation_columns

from ..schedules import reference
from .kernels import emulator


@pytest.mark.parametrize("isa", ["neon_dotprod", "avx512vnni"])
def test_a_kernel_refuses_an_argument_of_another_shape(isa: str) -> None:
    func = reference.BY_LABEL["dense_int8"].linear((1, 1), 8, 64)
    xq = np.zeros((1, activation_columns(64) + 1), np.int8)
    with pytest.raises(AssertionError, match=r"xq.*shape"):
        emulator(isa).build(func)(
            xq,
            np.ones(1, np.float32),
            np.ones((1, 1, 16, 32), np.int8),
            np.ones(8, np.float32),
            np.ones((1, 1, 8), np.float32),
        )
