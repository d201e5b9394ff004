"""Compressed layers in the place of their float weights."""

import numpy as np

from hwpq_tvm.compressed_source import CompressedSource
from hwpq_tvm.finished_layers import FinishedLayers

from .test_finished_layers import BUILD, GROUPS, arrays_of


def test_finished_layers_stand_for_their_weights():
    class Source:
        def shape(self, name):
            return (1, 1)

        def load(self, name):
            return np.zeros((1, 1), np.float32)

    finished = FinishedLayers(None, BUILD, resume=False)
    group = next(group for group in GROUPS if len(group.members) == 2)
    arrays = arrays_of(group)
    finished.add(group, arrays)
    source = CompressedSource(Source(), [group], finished)
    for linear, rows in zip(group.members, (slice(0, 24), slice(24, 40)), strict=True):
        parts = {
            "weight": arrays["q+k.weight"][rows.start // 8 : rows.stop // 8],
            "scale": arrays["q+k.scale"][rows],
        }
        expected = linear.format.dequantize(parts, linear.N, linear.K)
        np.testing.assert_array_equal(source.load(linear.weight), expected)
        assert np.abs(expected).max() > 0
    assert source.load("odd").shape == (1, 1)
