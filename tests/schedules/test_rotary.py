"""Rotary positions and the update of the cache against NumPy: the plain description, and the kernels of CPUs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import tvm
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.rotary import rotary_update

from . import reference
from .attention_reference import dequantized_rows

MAX_LEN, LAYERS, LAYER, EPSILON = 20, 2, 1, 1e-3


@dataclass(frozen=True)
class Shape:
    """What a kernel is made for; `packed` puts queries, keys and values in one tensor, behind other columns."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    seq_len: int | None
    packed: bool = True
    table_batch: int = 1
    biases: tuple[bool, bool, bool] = (False, False, False)
    epsilons: tuple[float | None, float | None] = (None, None)
    cache_dtype: str = "float32"

    @property
    def sizes(self) -> list[int]:
        """Columns of queries, keys and values."""
        return [count * self.head_dim for count in (self.heads, self.kv_heads, self.kv_heads)]

    def update(self) -> PrimFunc:
        """Describe the kernel."""
        return rotary_update(
            layers=LAYERS,
            batch=self.batch,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            rotary_dim=self.rotary_dim,
            max_len=MAX_LEN,
            seq_len=self.seq_len,
            table_batch=self.table_batch,
            columns=[sum(self.sizes) + 7] if self.packed else self.sizes[::-1],
            inputs=(0, 0, 0) if self.packed else (2, 1, 0),
            first=[2, 3 + self.sizes[0], 7 + sum(self.sizes[:2])] if self.packed else (0, 0, 0),
            biases=self.biases,
            epsilons=self.epsilons,
            cache_dtype=self.cache_dtype,
        )


SHAPES = {
    "llama decode": Shape(1, 9, 3, 64, 64, 1),
    "llama prefill": Shape(1, 9, 3, 64, 64, None, cache_dtype="int8"),
    "qwen2": Shape(2, 3, 1, 12, 12, None, packed=False, table_batch=2, biases=(True, True, True)),
    "qwen3": Shape(2, 4, 2, 20, 20, 1, epsilons=(EPSILON, 2 * EPSILON), cache_dtype="int8"),
    "partial": Shape(1, 2, 2, 37, 30, 1, biases=(False, True, False), epsilons=(None, EPSILON)),
    "smallest": Shape(1, 1, 1, 4, 2, None, packed=False, cache_dtype="int8"),
}


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate the first features of heads `[batch, seq_len, heads, head_dim]`, as transformers does."""
    turning, rest = np.split(x, [cos.shape[-1]], axis=-1)
    low, high = np.split(turning, 2, axis=-1)
    halves = np.concatenate([-high, low], axis=-1)
    return np.concatenate([turning * cos[:, :, None] + halves * sin[:, :, None], rest], axis=-1)


@pytest.mark.parametrize("target", ["plain", *reference.TARGETS])
@pytest.mark.parametrize("name", SHAPES)
def test_equal_to_numpy(target: str, name: str) -> None:
    shape = SHAPES[name]
    machine = reference.TARGETS["portable" if target == "plain" else target]
    reference.skip_unless_native(machine)
    func = shape.update()
    if target != "plain":
        func = registry.schedule(func, machine)[0]
    built = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=machine)
    for length in (1,) if shape.seq_len else (1, 7, 33):
        check(built["main"], shape, length)


def check(update: Callable[..., None], shape: Shape, length: int) -> None:
    """Call a kernel, which takes TVM's tensors, on random inputs, and compare what it writes."""
    rng = np.random.default_rng()

    def draw(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims).astype("float32")

    batch, head_dim = shape.batch, shape.head_dim
    parts = [draw(batch, length, size) for size in shape.sizes]
    biases, weights = [draw(size) for size in shape.sizes], [draw(head_dim) for _ in range(2)]
    cos, sin = draw(2, shape.table_batch, length, shape.rotary_dim)
    q, k, v = parts
    between = [draw(batch, length, columns) for columns in (2, 1, 4)]
    packed = np.concatenate([between[0], q, between[1], k, between[2], v], axis=-1)
    inputs = [packed] if shape.packed else [v, k, q]
    # The last tokens may find no room in the cache.
    past = rng.integers(0, MAX_LEN, batch).astype("int32")
    row = head_dim + (4 if shape.cache_dtype == "int8" else 0)
    cache = tvm.runtime.tensor(np.full((LAYERS, 2, batch, shape.kv_heads, MAX_LEN, row), 7, shape.cache_dtype))
    query = tvm.runtime.tensor(np.full((batch, shape.heads, length, head_dim), 93, "float32"))
    given = [
        *inputs,
        *(bias for bias, wanted in zip(biases, shape.biases, strict=True) if wanted),
        *(weight for weight, epsilon in zip(weights, shape.epsilons, strict=True) if epsilon is not None),
        cos,
        sin,
        past,
    ]
    update(*map(tvm.runtime.tensor, given), cache, LAYER, query)

    heads = []
    for part, x in enumerate(parts):
        x = x.astype("float64") + (biases[part] if shape.biases[part] else 0)
        x = x.reshape(batch, length, -1, head_dim)
        if part < 2 and (epsilon := shape.epsilons[part]) is not None:
            x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weights[part]
        heads.append((rotated(x, cos, sin) if part < 2 else x).transpose(0, 2, 1, 3))
    bound = 1e-6 * 8 * max(np.abs(x).max() for x in heads)
    assert np.abs(query.numpy() - heads[0]).max() <= bound
    found = cache.numpy()
    assert (found[1 - LAYER] == 7).all()
    for half, expected in enumerate(heads[1:]):
        for b in range(batch):
            here, last = found[LAYER, half, b], min(past[b] + length, MAX_LEN)
            assert (here[:, : past[b]] == 7).all()
            assert (here[:, last:] == 7).all()
            stored, wanted = here[:, past[b] : last], expected[b, :, : last - past[b]]
            if shape.cache_dtype == "int8":
                steps = np.abs(wanted).max(axis=-1, keepdims=True) / 127
                assert (np.abs(dequantized_rows(stored) - wanted) <= 0.501 * steps + bound).all()
            else:
                assert np.abs(stored - wanted).max() <= bound
