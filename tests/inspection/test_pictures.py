import re
import sys

import pytest

from hwpq_tvm.errors import ConfigError, DependencyError
from hwpq_tvm.inspection import layer_charts, size_speed_charts, time_charts
from hwpq_tvm.inspection.inspection import Inspection
from hwpq_tvm.inspection.pictures import DARK, LIGHT, file_name, svg, write_png
from hwpq_tvm.inspection.speeds import Speeds

from . import artifacts

PNG = b"\x89PNG\r\n\x1a\n"


def drawn(picture, theme=LIGHT):
    """Texts, and heights or widths of the bars, that a picture puts on axes."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    picture.draw(axes, theme)
    return axes


def timed(tmp_path, **changes):
    """An artefact whose first kind of layer has times."""
    content = artifacts.report()
    for layer in content["layers"]:
        if layer["name"].endswith("q_proj"):
            layer.update(changes)
    return artifacts.artifact(tmp_path / "timed", content)


def test_everything_that_there_is_has_a_picture(tmp_path):
    content = artifacts.report(choice=artifacts.CHOICE)
    content["layers"][0] |= {
        "rivals": {"1": {"sparse24_int8": 2.0, "dense_int8": 4.0}},
        "tuned": {"4": {"default": 3.0, "tuned": 1.5}},
    }
    found = artifacts.artifact(tmp_path / "a", content)
    speeds = Speeds({"a": artifacts.figures(linears={"lm_head.weight": 1e-4})}, "measured in this run")
    pictures = Inspection((found,), speeds).pictures()
    assert [picture.name for picture in pictures] == [
        "error-by-depth",
        "bits-per-weight",
        "size",
        "speed",
        "decode-step",
        "sparse-against-dense",
        "tuned-against-default",
        "frontier-a",
    ]
    for picture in pictures:
        light, dark = svg(picture, LIGHT), svg(picture, DARK)
        assert LIGHT.background in light and DARK.background in dark
        assert light == svg(picture, LIGHT)  # the same every time
        assert not re.search(r"""(href|src)=["'](?!#)""", light)
        assert picture.alt and picture.caption


def test_what_there_is_nothing_of_has_none(tmp_path):
    lossless = artifacts.report()
    for layer in lossless["layers"]:
        layer["relative_error"] = None
    names = [picture.name for picture in Inspection((artifacts.artifact(tmp_path / "a", lossless),)).pictures()]
    assert names == ["bits-per-weight", "size"]


def test_errors_have_a_line_for_each_kind_or_each_artefact(tmp_path):
    found = artifacts.artifact(tmp_path / "a")
    lines = drawn(layer_charts.error_by_depth([found])).lines
    assert [line.get_label() for line in lines] == [
        "mlp.up_proj",
        "mlp.down_proj",
        "self_attn.q_proj",
        "self_attn.k_proj",
    ]
    assert list(lines[0].get_ydata()) == pytest.approx([0.2, 0.22, 0.24])
    other = artifacts.artifact(tmp_path / "b", artifacts.report(error=0.1))
    lines = drawn(layer_charts.error_by_depth([found, other])).lines
    assert [(line.get_label(), line.get_ydata()[0]) for line in lines] == [("a", 0.2), ("b", 0.1)]


def test_kinds_beyond_the_colours_share_a_line(tmp_path):
    layers = [artifacts.layer(f"blocks.{depth}.kind{kind}", (64, 64)) for depth in range(2) for kind in "abcdefghijkl"]
    found = artifacts.artifact(tmp_path / "a", artifacts.report(layers=layers))
    labels = [line.get_label() for line in drawn(layer_charts.error_by_depth([found])).lines]
    assert len(labels) == 9
    assert labels[-1] == "others"


def test_errors_that_are_estimates_are_told(tmp_path):
    content = artifacts.report()
    computed = layer_charts.error_by_depth([artifacts.artifact(tmp_path / "a", content)])
    content["layers"][0]["relative_error_of"] = "output, inputs taken as uncorrelated"
    estimated = layer_charts.error_by_depth([artifacts.artifact(tmp_path / "b", content)])
    assert "estimated" in estimated.caption and "estimated" not in computed.caption


def test_sizes_of_rivals_say_whose_model_they_are_of(tmp_path):
    source = {"path": "other", "format": "torch", "bytes": 1, "architecture": "Other"}
    found = [artifacts.artifact(tmp_path / "a"), artifacts.artifact(tmp_path / "b", source=source)]
    assert "from the formats for a," in size_speed_charts.sizes(found, {}).caption
    assert "from the formats, " in size_speed_charts.sizes(found[:1], {}).caption


def test_bits_of_every_kind_are_bars(tmp_path):
    bars = drawn(layer_charts.bits_by_kind([artifacts.artifact(tmp_path / "a")])).patches
    assert sorted(bar.get_width() for bar in bars) == pytest.approx([5.25] * 4 + [8.5])


def test_ratios_are_of_2_4_by_dense_and_of_tuned_by_default(tmp_path):
    found = timed(
        tmp_path,
        rivals={"1": {"dense_int8": 4.0, "sparse24_int8": 3.0}, "256": {"sparse24_int8": 90.0, "dense_int8": 60.0}},
        tuned={"256": {"default": 100.0, "tuned": 80.0}},
    )
    bars = drawn(time_charts.sparse_against_dense([found])).patches
    assert [bar.get_width() for bar in bars] == [0.75, 1.5]
    axes = drawn(time_charts.tuned_against_default([found]))
    assert [bar.get_width() for bar in axes.patches] == [0.8]
    assert "80.0 | 100" in [text.get_text() for text in axes.texts]
    # The same kernel in every block: one row.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["q_proj"]


def test_rivals_are_marked_as_computed(tmp_path):
    picture = size_speed_charts.sizes([artifacts.artifact(tmp_path / "a")], {"dense int8": 10**6})
    labels = [label.get_text() for label in drawn(picture).get_yticklabels()]
    assert labels == ["dense int8 (computed)", "a"]


def test_pictures_are_files_of_both_themes(tmp_path):
    picture = layer_charts.bits_by_kind([artifacts.artifact(tmp_path / "a")])
    written = [write_png(picture, theme, tmp_path / "new" / "folder") for theme in (LIGHT, DARK)]
    assert [path.name for path in written] == ["bits-per-weight.png", "bits-per-weight-dark.png"]
    assert all(path.read_bytes().startswith(PNG) for path in written)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        write_png(picture, LIGHT, tmp_path / "file")


def test_names_of_layers_are_no_formulas(tmp_path):
    content = artifacts.report()
    content["layers"][0]["name"] = r"blocks.0.$\frac{a$"
    for picture in Inspection((artifacts.artifact(tmp_path / "$x_1", content),)).pictures():
        svg(picture, LIGHT)


def test_labels_that_are_paths_name_files():
    assert file_name("/a b/c:d") == "a-b-c-d"


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    picture = layer_charts.bits_by_kind([artifacts.artifact(tmp_path / "a")])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"pip install 'hwpq-tvm\[plots\]'"):
        svg(picture, LIGHT)
