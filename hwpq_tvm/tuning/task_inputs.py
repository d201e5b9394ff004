"""The arguments that kernels of one workload are measured on, and the check of their results."""

import itertools
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np

from ..bandwidth import uncached_bytes
from ..runtime.device import Device
from ..runtime.tvm_runtime import ALIGNMENT, aligned_empty
from ..schedules.layouts import packed as layouts
from ..schedules.layouts.tiles import padded
from . import random_tensors
from .conditions import Conditions
from .expected import expected_linear

# Copies of small weights: more would take longer to make than to read.
_MOST_COPIES = 4096
# Of a GPU: four times the largest second-level cache there is.
_GPU_FOOTPRINT = 1 << 29
# How far a function may be from its reference, both in float32 with sums in another order: by the largest result.
_FUNCTION_ERROR = 1e-4

Kernel = Callable[..., None]


@dataclass(slots=True)
class TaskInputs:
    """Arguments for kernels of one workload.

    Attributes
    ----------
    device
        Where they lie.
    copies
        Argument lists, results included; the inputs that a cache would help with are others in each.
    results
        Shape and dtype of the results, the last arguments.
    difference
        Says how results for the first of the copies are wrong; None where they are right.
    """

    device: Device
    copies: list[tuple[Any, ...]]
    results: list[layouts.Tensor]
    difference: Callable[[list[np.ndarray]], str | None]
    _turns: Iterator[tuple[Any, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.copies)

    def check(self, kernel: Kernel) -> str | None:
        """Run a kernel once and say how its results are wrong; None where they are right."""
        results = [self.device.from_host(_unwritten(*result)) for result in self.results]
        kernel(*self.copies[0][: -len(results)], *results)
        return self.difference([self.device.to_host(result) for result in results])

    def turns(self, count: int) -> Iterator[tuple[Any, ...]]:
        """The next argument lists, each of which was not used for the longest time."""
        return itertools.islice(self._turns, count)


def make_inputs(workload: str, conditions: Conditions, load: Callable[[str], Kernel]) -> TaskInputs:
    """Make random arguments and what a kernel must make of them.

    Parameters
    ----------
    workload
        JSON of `function_workload.workload_json`.
    conditions
        How kernels will be measured.
    load
        Loads the function of a library.
    """
    fields = json.loads(workload)
    device = Device.parse(conditions.device)
    if conditions.footprint is not None:
        footprint = conditions.footprint
    else:
        footprint = _GPU_FOOTPRINT if device.copies else uncached_bytes()
    if fields["kind"] == "linear":
        return _linear(fields, footprint, device)
    return _function(fields, footprint, device, load(fields["reference"]))


def _linear(workload: dict[str, Any], footprint: int, device: Device) -> TaskInputs:
    layout, group_size = workload["weight_format"], workload["group_size"]
    M, N, K = workload["M"], workload["N"], workload["K"]
    rng = np.random.default_rng()
    tensors = layouts.tensors(layout, group_size, N, K)
    memory = _Memory(tensors.values(), footprint)
    weights = []
    for name, tensor in tensors.items():
        raw, arrays = memory.copies(tensor)
        random_tensors.fill(raw, layout, name, tensor[1], rng)
        weights.append(arrays)
    activations = random_tensors.activations(workload["activation_dtype"], M, K, rng)
    packed = {name: arrays[0] for name, arrays in zip(tensors, weights, strict=True)}
    expected = expected_linear(layout, group_size, packed, activations, M, N, K)
    result = ((1, M, layouts.rows(layout, N)), "float32")
    memory.read()
    x, out = [device.from_host(array) for array in activations], device.from_host(_unwritten(*result))
    copies = [(*x, *map(device.from_host, parts), out) for parts in zip(*weights, strict=True)]
    return TaskInputs(device, copies, [result], lambda found: expected.difference(found[0][0]))


def _function(workload: dict[str, Any], footprint: int, device: Device, reference: Kernel) -> TaskInputs:
    rng = np.random.default_rng()
    tensors: list[layouts.Tensor] = [(tuple(shape), dtype) for shape, dtype in workload["arguments"]]
    inputs, results = tensors[: -workload["outputs"]], tensors[-workload["outputs"] :]
    memory = _Memory(inputs, footprint)
    stacks = []
    for tensor in inputs:
        raw, arrays = memory.copies(tensor)
        raw[...] = 0
        if np.issubdtype(np.dtype(tensor[1]), np.floating):
            values = rng.standard_normal(tensor[0], np.float32)
            for array in arrays:
                array[...] = values
        stacks.append(arrays)
    out = [device.from_host(_unwritten(*result)) for result in results]
    copies = [(*map(device.from_host, parts), *out) for parts in zip(*stacks, strict=True)] or [tuple(out)]
    reference(*copies[0])
    expected = [device.to_host(each).copy() for each in out]
    memory.read()
    return TaskInputs(device, copies, results, lambda found: _function_difference(found, expected))


def _function_difference(found: list[np.ndarray], expected: list[np.ndarray]) -> str | None:
    for number, (result, right) in enumerate(zip(found, expected, strict=True)):
        bound = 0.0
        finite = right[np.isfinite(right)]
        if np.issubdtype(right.dtype, np.floating) and finite.size:
            bound = max(_FUNCTION_ERROR, 4 * float(np.finfo(right.dtype).eps)) * float(np.abs(finite).max())
        with np.errstate(invalid="ignore"):  # a logarithm of random numbers is right to be infinite, or no number
            near = np.abs(result.astype(np.float64) - right) <= bound
        wrong = ~(near | (result == right) | (np.isnan(result) & np.isnan(right)))
        if wrong.any():
            at = tuple(int(index[0]) for index in np.nonzero(wrong))
            return (
                f"{int(wrong.sum())} of {right.size} values of result {number} are wrong, the first one at {at}: "
                f"{result[at]:.9g} instead of {right[at]:.9g}"
            )
    return None


class _Memory:
    """Where the inputs of the current workload lie: one piece for the whole life of the process.

    Getting hundreds of megabytes from the system takes longer than filling them.
    """

    _all: ClassVar[np.ndarray] = aligned_empty(0)

    def __init__(self, tensors: Collection[layouts.Tensor], footprint: int) -> None:
        nbytes = sum(_stride(tensor) for tensor in tensors)
        self.count = min(max(1, -(-footprint // max(nbytes, 1))), _MOST_COPIES)
        self._used = 0
        if len(_Memory._all) < self.count * nbytes:
            _Memory._all = aligned_empty(0)  # both at once may be too much
            _Memory._all = aligned_empty(self.count * nbytes)

    def copies(self, tensor: layouts.Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
        """Bytes for all copies of a tensor, and each of them."""
        stride, (shape, dtype) = _stride(tensor), tensor
        raw = _Memory._all[self._used : self._used + self.count * stride]
        self._used += len(raw)
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        starts = range(0, len(raw), stride)
        return raw, [raw[start : start + nbytes].view(dtype).reshape(shape) for start in starts]

    def read(self) -> None:
        """Read everything once: what was just written is still on its way to memory, and slows down who reads first."""
        _Memory._all[: self._used].view(np.int64).sum()


def _stride(tensor: layouts.Tensor) -> int:
    shape, dtype = tensor
    return padded(prod(shape) * np.dtype(dtype).itemsize, ALIGNMENT)


def _unwritten(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory for a result, in which what a kernel leaves out is found: no numbers, or a pattern of bits."""
    array = aligned_empty(prod(shape) * np.dtype(dtype).itemsize)
    array[...] = 0xFF
    return array.view(dtype).reshape(shape)
