"""Calibration: the sums are those of the model's own activations, in as little memory as it is given."""

import shutil
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwpq_tvm import calibration
from hwpq_tvm.calibration import CalibrationWindows, gram_passes, observe
from hwpq_tvm.errors import CalibrationError, ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.relax_passes.linears import OUTPUT_NAMES, find_linears
from hwpq_tvm.relax_passes.observe_inputs import OBSERVE
from tests.tiny_hf import tiny_llama

MAX_SEQ_LEN = 32


class Parameters:
    """A model's weights, of which it counts the reads, the bytes, and how many are alive."""

    def __init__(self, source, replaced=None):
        self.source = source
        self.replaced = replaced or {}
        self.reads = []
        self.alive = self.most_alive = 0

    def shape(self, name):
        return self.source.shape(name)

    def load(self, name):
        if name in self.replaced:
            return self.replaced[name]
        # An array of its own, aligned, so that the tensor made of it is the array itself.
        array = np.zeros(self.shape(name), np.float32)
        array = np.frombuffer(bytearray(array.nbytes + 64), np.uint8)
        start = -array.ctypes.data % 64
        shape = self.shape(name)
        array = array[start : start + 4 * int(np.prod(shape))].view(np.float32).reshape(shape)
        array[...] = self.source.load(name)
        self.reads.append(name)
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(array, self._died)
        return array

    def _died(self):
        self.alive -= 1


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Compile each distinct module once: that takes most of the time."""
    folder, compile_module = tmp_path_factory.mktemp("compiled"), calibration.compile_module

    def compile_or_copy(mod, target, library, **options):
        # All tests observe the same model.
        names = tuple(mod[OBSERVE].attrs[OUTPUT_NAMES])
        kept = folder / f"{hash(names)}.so"
        if not kept.exists():
            compile_module(mod, target, kept, **options)
        shutil.copy(kept, library)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "compile_module", compile_or_copy)
        yield


@pytest.fixture(scope="module")
def model():
    # An input beyond one panel of the Gram kernel, and a head that is not the table of embeddings.
    return tiny_llama(tie_word_embeddings=False, intermediate_size=104)


@pytest.fixture(scope="module")
def imported(model):
    return import_model(model, max_seq_len=MAX_SEQ_LEN)


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(5)
    return CalibrationWindows(tuple(rng.integers(0, 101, length) for length in (17, MAX_SEQ_LEN, 1)), "a test")


@pytest.fixture(scope="module")
def expected(model, windows):
    """Weight of each linear -> second moments of its input, and of its input with every token at a unit mean square."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def add(_, inputs, name=name):
                x = inputs[0].detach().double().flatten(0, -2)
                u = x / (x * x).mean(-1, keepdim=True).sqrt()
                moments = torch.stack([x.T @ x, u.T @ u]).numpy()
                found[f"{name}.weight"] = found.get(f"{name}.weight", 0) + moments

            hooks.append(module.register_forward_pre_hook(add))
    with torch.no_grad():
        for ids in windows.ids:
            model(torch.from_numpy(ids[None]))
    for hook in hooks:
        hook.remove()
    return found


def check(observation, expected, squares, grams):
    assert set(observation.squares) == set(squares.values())
    assert set(observation.grams) == set(grams.values())
    for weight, name in squares.items():
        assert observation.squares[name].dtype == np.float64
        np.testing.assert_allclose(observation.squares[name], np.diagonal(expected[weight][0]), rtol=1e-4)
    for weight, name in grams.items():
        found, matrix = observation.grams[name], expected[weight][1]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, found.T)
        scale = np.sqrt(np.outer(np.diagonal(matrix), np.diagonal(matrix)))
        assert (np.abs(found - matrix) <= 1e-4 * scale).all()


def everything(imported):
    """Names of the sums of squares and of the Gram matrices of all linears, by weight."""
    weights = [call.weight.name for call in find_linears(imported.module["prefill"])]
    return {w: f"squares of {w}" for w in weights}, {w: f"Gram matrix of {w}" for w in weights}


# Inputs of the first layer only.
EARLY = {
    "model.layers.0.self_attn.q_proj.weight": "attention",
    "model.layers.0.mlp.gate_proj.weight": "feed-forward",
}


@pytest.mark.parametrize("budget", [0, 2**30], ids=["streamed", "resident"])
def test_sums_are_those_of_the_models_own_activations(imported, windows, expected, budget, monkeypatch):
    squares, grams = everything(imported)
    assert set(squares) == set(expected)
    parameters = Parameters(imported.parameters)
    mirrored = calibration._mirrored

    def mirror_when_weights_are_gone(total):
        assert parameters.alive == 0
        return mirrored(total)

    monkeypatch.setattr(calibration, "_mirrored", mirror_when_weights_are_gone)
    found = observe(imported, squares, grams, windows, parameters=parameters, memory_budget=budget, progress=False)
    check(found, expected, squares, grams)
    assert (found.count, found.source) == (50, "a test")
    assert found.peak_bytes > 10 * 2**20
    # What is read is read for each window, or once in all. lm_head's product is nothing that was asked for.
    counts = {parameters.reads.count(name) for name in parameters.reads}
    assert counts == {1 if budget else len(windows.ids)}
    assert "lm_head.weight" not in parameters.reads
    if not budget:
        assert parameters.most_alive <= 3


def test_the_model_runs_no_further_than_the_last_input(imported, windows, expected):
    parameters = Parameters(imported.parameters)
    found = observe(imported, EARLY, {}, windows, parameters=parameters, memory_budget=0, progress=False)
    check(found, expected, EARLY, {})
    assert not [name for name in parameters.reads if "mlp" in name or "layers.1" in name]


def test_a_budget_holds_the_weights_that_fit(imported, windows):
    parameters = Parameters(imported.parameters)
    observe(imported, EARLY, {}, windows, parameters=parameters, memory_budget=20_000, progress=False)
    once = {name for name in parameters.reads if parameters.reads.count(name) == 1}
    always = {name for name in parameters.reads if parameters.reads.count(name) == len(windows.ids)}
    assert once | always == set(parameters.reads)
    size = sum(4 * int(np.prod(parameters.shape(name))) for name in once)
    assert once and always and 15_000 < size <= 20_000


def test_a_dead_input_has_zeros(imported, windows):
    weight = "model.layers.0.mlp.up_proj.weight"
    dead = {weight: np.zeros(imported.parameters.shape(weight), np.float32)}
    squares, grams = everything(imported)
    parameters = Parameters(imported.parameters, dead)
    found = observe(imported, squares, grams, windows, parameters=parameters, progress=False)
    weight = "model.layers.0.mlp.down_proj.weight"
    assert (found.squares[squares[weight]] == 0).all()
    assert (found.grams[grams[weight]] == 0).all()
    assert all(np.isfinite(matrix).all() for matrix in found.grams.values())
    assert sum((matrix == 0).all() for matrix in found.grams.values()) == 1


def test_activations_that_overflow_name_the_first_layer(imported, windows):
    weight = "model.layers.0.mlp.up_proj.weight"
    parameters = Parameters(imported.parameters, {weight: imported.parameters.load(weight) * np.float32(1e38)})
    with pytest.raises(CalibrationError, match=r"layer model\.layers\.0\.mlp\.down_proj: .* window 0 of a test"):
        observe(imported, *everything(imported), windows, parameters=parameters, progress=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_weights_are_named(imported, windows, value):
    weight = "model.layers.0.self_attn.o_proj.weight"
    damaged = imported.parameters.load(weight).copy()
    damaged[3, 7] = value
    parameters = Parameters(imported.parameters, {weight: damaged})
    with pytest.raises(ImportModelError, match=r"^model\.layers\.0\.self_attn\.o_proj: infinite or not a number"):
        observe(imported, *everything(imported), windows, parameters=parameters, progress=False)


def test_what_goes_wrong_with_a_weight_is_told_as_it_is(imported, windows):
    class Broken(Parameters):
        def load(self, name):
            raise ImportModelError(f"{name}: the disk is gone")

    parameters = Broken(imported.parameters)
    with pytest.raises(ImportModelError, match="the disk is gone"):
        observe(imported, EARLY, {}, windows, parameters=parameters, progress=False)


def test_nothing_asked_for_is_nothing_done(imported, windows, monkeypatch):
    monkeypatch.setattr(calibration, "compile_module", None)
    found = observe(imported, {}, {}, windows, progress=False)
    assert (found.squares, found.grams, found.count) == ({}, {}, 50)


@given(sizes=st.lists(st.integers(1, 12000), max_size=20), budget=st.integers(0, 2**33))
def test_passes_keep_the_order_and_the_budget(sizes, budget):
    names = {f"matrix {i}": size for i, size in enumerate(sizes)}
    passes = gram_passes(names, budget)
    assert [name for one in passes for name in one] == list(names)
    for one in passes:
        assert one
        assert len(one) == 1 or sum(8 * names[name] ** 2 for name in one) <= budget
    # No pass ends while the next matrix still fits.
    for one, after in pairwise(passes):
        assert sum(8 * names[name] ** 2 for name in (*one, after[0])) > budget


@given(size=st.integers(1, 700), seed=st.integers(0, 9))
def test_the_lower_triangle_is_mirrored(size, seed):
    total = np.random.default_rng(seed).standard_normal((size, size))
    upper = np.triu(total).astype(np.float32)
    np.testing.assert_array_equal(calibration._mirrored(total), upper + np.triu(upper, 1).T)
