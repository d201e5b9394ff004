"""Layers kept on disk: what a stopped build leaves, and what goes on from it."""

import numpy as np
import pytest

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import ConfigError
from hwpq_tvm.finished_layers import FinishedLayers
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.packing import packed_types, packing_groups
from tests.relax_passes.models import ENTRIES, TinyLM

GROUPS = packing_groups(make_plan(TinyLM, ENTRIES, HWPQConfig(), calibrated=False))
BUILD = {"model": "a", "configuration": {"b": 1}}


def arrays_of(group, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(-9, 9, [int(size) for size in type_.shape.values]).astype(str(type_.dtype))
        for name, type_ in packed_types(group).items()
    }


def test_a_build_goes_on_with_what_is_whole(tmp_path):
    before = FinishedLayers(tmp_path, BUILD, resume=False)
    assert before.take_up(GROUPS) == GROUPS
    for group in GROUPS[:2]:
        before.add(group, arrays_of(group))
    # What a kill leaves of the third: a file without its final name, and of the second a damaged one.
    files = sorted((tmp_path / "layers").glob("*.safetensors"))
    assert len(files) == 2
    (tmp_path / "layers" / "x.tmp").write_bytes(b"half")
    after = FinishedLayers(tmp_path, BUILD, resume=True)
    assert after.take_up(GROUPS) == GROUPS[2:]
    for group in GROUPS[:2]:
        for name, array in arrays_of(group).items():
            np.testing.assert_array_equal(after.arrays()[name], array)
            assert after.arrays()[name].dtype == array.dtype
    files[0].write_bytes(files[0].read_bytes()[:-3])
    assert len(FinishedLayers(tmp_path, BUILD, resume=True).take_up(GROUPS)) == len(GROUPS) - 1


def test_layers_of_another_build_are_refused_and_without_resuming_removed(tmp_path):
    FinishedLayers(tmp_path, BUILD, resume=False).add(GROUPS[0], arrays_of(GROUPS[0]))
    with pytest.raises(ConfigError, match="a build with another configuration, so it can't be resumed"):
        FinishedLayers(tmp_path, {**BUILD, "configuration": {"b": 2}}, resume=True)
    assert FinishedLayers(tmp_path, BUILD, resume=False).take_up(GROUPS) == GROUPS
    with pytest.raises(ConfigError, match="resume=True without work_dir"):
        FinishedLayers(None, BUILD, resume=True)


def test_resuming_where_nothing_was_started_starts(tmp_path):
    finished = FinishedLayers(tmp_path / "new", BUILD, resume=True)
    assert finished.take_up(GROUPS) == GROUPS
    finished.add(GROUPS[0], arrays_of(GROUPS[0]))
    assert finished.of(GROUPS[0]) is not None
    assert finished.of(GROUPS[1]) is None
    # A kill before the first layer leaves nothing that could be of another build.
    (tmp_path / "empty" / "layers").mkdir(parents=True)
    assert FinishedLayers(tmp_path / "empty", BUILD, resume=True).take_up(GROUPS) == GROUPS


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"work folder .*file.*can't be written"):
        FinishedLayers(tmp_path / "file", BUILD, resume=False)


def test_schemes_decide_the_names():
    apart = packing_groups(make_plan(TinyLM, ENTRIES, HWPQConfig(overrides={"k": LayerScheme(None)}), calibrated=False))
    assert [name for group in apart for name in packed_types(group)][:4] == [
        "q.weight",
        "q.scale",
        "k.weight",
        "k.scale",
    ]
