"""Views of parameters: what is read of the parameter for a row of the view."""

import numpy as np
import pytest

from hwpq_tvm.importers.weight_views import ViewedParameters
from hwpq_tvm.relax_passes.linear_form import WeightView

RNG = np.random.default_rng(11)
ARRAYS = {
    "point": RNG.standard_normal((6, 5, 1, 1), np.float32),
    "turned": RNG.standard_normal((5, 6), np.float32),
    "stacked": RNG.standard_normal((3, 6, 5), np.float32),
}
VIEWS = {
    "point.view": WeightView("point", (6, 5), None, False),
    "turned.view": WeightView("turned", (6, 5), None, True),
    "stacked.2": WeightView("stacked", (6, 5), 2, False),
}


class Source:
    """Weights in memory, of which it notes what is read."""

    def __init__(self):
        self.reads = []

    def shape(self, name):
        return ARRAYS[name].shape

    def load(self, name):
        self.reads.append(name)
        return ARRAYS[name]

    def load_index(self, name, index):
        self.reads.append((name, index))
        return ARRAYS[name][index]

    def reads_parts(self, name):
        return True


@pytest.mark.parametrize(
    ("name", "reads", "alone"),
    [
        ("point.view", [("point", 1)], True),
        ("turned.view", ["turned"], False),
        ("stacked.2", [("stacked", 2)], False),
        ("stacked", [("stacked", 1)], True),
    ],
)
def test_what_a_row_costs(name, reads, alone):
    source = Source()
    parameters = ViewedParameters(source, VIEWS)
    expected = parameters.load(name)[1]
    source.reads.clear()
    row = parameters.load_index(name, 1)
    np.testing.assert_array_equal(row, expected)
    assert source.reads == reads and row.flags.c_contiguous
    assert parameters.reads_parts(name) is alone
