"""What an entry function is called with: arrays that fit what it takes, or an error that says which do not."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .manifest import EntrySpec, TensorSpec


def as_inputs(spec: EntrySpec, values: Sequence[Any]) -> list[np.ndarray]:
    """Turn what was given into arrays; anything but an array or a tensor gets the type that is expected."""
    arrays = []
    for number, value in enumerate(values):
        array = np.asarray(value)
        if not hasattr(value, "dtype") and number < len(spec.inputs):
            wanted = np.dtype(spec.inputs[number].dtype)
            # Numbers with a fraction are not made integers: they are refused as what they are.
            if array.dtype.kind != "f" or wanted.kind not in "iub" or not array.size:
                array = np.asarray(value, wanted)
        arrays.append(array)
    return arrays


def input_problems(spec: EntrySpec, arrays: Sequence[np.ndarray]) -> list[str]:
    """Say what is wrong with the inputs of an entry function.

    Parameters
    ----------
    spec
        The entry function.
    arrays
        Its inputs, without the weights.

    Returns
    -------
    list of str
        A line for each input that does not fit, naming it; empty if all do.
    """
    if len(arrays) != len(spec.inputs):
        names = ", ".join(each.name for each in spec.inputs)
        return [f"found {len(arrays)} inputs, expected {len(spec.inputs)}: {names}."]
    problems = []
    sizes: dict[str, tuple[int, str]] = {}
    for array, expected in zip(arrays, spec.inputs, strict=True):
        if not _fits(array, expected):
            problems.append(
                f"input {expected.name} is {array.dtype} of shape {array.shape}: expected {expected.dtype} of shape "
                f"({', '.join(map(str, expected.shape))}{',' if len(expected.shape) == 1 else ''})."
            )
            continue
        if (rows := spec.ids.get(expected.name)) and array.size and not 0 <= array.min() <= array.max() < rows:
            bad = array[(array < 0) | (array >= rows)].flat[0]
            problems.append(f"input {expected.name} holds {bad}: expected 0 to {rows - 1}, the rows of its table.")
        for axis, (dim, size) in enumerate(zip(expected.shape, array.shape, strict=True)):
            if isinstance(dim, str):
                problems += _dimension(dim, size, f"dimension {axis} of {expected.name}", sizes, spec)
    return problems


def _dimension(name: str, size: int, where: str, sizes: dict[str, tuple[int, str]], spec: EntrySpec) -> list[str]:
    """Check the size of a dimension that varies against where it was seen before, and its limit."""
    before, at = sizes.setdefault(name, (size, where))
    if size != before:
        return [f"{name} is {before} in {at} and {size} in {where}: expected the same."]
    largest, smallest = spec.upper_bounds.get(name, size), spec.lower_bounds.get(name, size)
    if not smallest <= size <= largest and at == where:
        limit = f"at most {largest}" if size > largest else f"at least {smallest}"
        return [f"{name} is {size} in {where}: the model was compiled for {limit}."]
    return []


def _fits(array: np.ndarray, spec: TensorSpec) -> bool:
    return (
        array.dtype.name == spec.dtype
        and array.ndim == len(spec.shape)
        and all(isinstance(want, str) or want == found for want, found in zip(spec.shape, array.shape, strict=True))
    )
