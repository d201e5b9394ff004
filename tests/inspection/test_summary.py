import pytest

from hwpq_tvm.inspection import summary

from . import artifacts


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ("output", "The outputs of its layers are off by 0.200 in the median (relative error), and by 0.300"),
        ("output, inputs taken as uncorrelated", "(relative error; inputs taken as uncorrelated), and by 0.300"),
        ("weights", "The weights of its layers are off by"),
    ],
)
def test_errors_are_told_with_how_they_were_found(tmp_path, of, words):
    layers = [
        artifacts.layer(f"model.layers.{block}.up_proj", (8, 8), error=error, relative_error_of=of)
        for block, error in enumerate([0.1, 0.2, 0.3])
    ]
    found = artifacts.artifact(tmp_path / "a", {**artifacts.report(), "layers": layers})
    assert words in summary.errors(found)
    assert "model.layers.2.up_proj" in summary.errors(found)
