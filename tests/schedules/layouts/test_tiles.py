import pytest

from hwpq_tvm.schedules.layouts import tiles


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (2, 8), (8, 8), (9, 16)])
def test_rows_of_quantized_activations(tokens: int, rows: int) -> None:
    assert tiles.padded_rows(tokens) == rows


def test_weights_are_padded_to_whole_tiles() -> None:
    assert (tiles.padded_out_features(1), tiles.padded_out_features(16)) == (8, 16)
    assert (tiles.padded_in_features(4), tiles.padded_in_features(128)) == (64, 128)
    assert [tiles.padded_in_features(130, size) for size in (32, 64, 128)] == [192, 192, 256]


def test_activations_are_wide_enough_for_every_group_size() -> None:
    for K in (1, 64, 65, 130, 576):
        assert tiles.activation_columns(K) == max(tiles.padded_in_features(K, size) for size in tiles.GROUP_SIZES)
