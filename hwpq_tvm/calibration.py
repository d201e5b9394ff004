"""Feeds calibration data through the float module, made observable by a Relax pass, on the host whatever the target."""

import mmap
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from .calibration_source import CalibrationData, calibration_source
from .calibration_text import Calibration, CalibrationWindows
from .errors import CalibrationError, ImportModelError
from .importers import ImportedModel, ParameterSource
from .lazy_weights import LazyWeights
from .memory import default_memory_budget, peak_memory
from .progress import track
from .relax_passes.float_linears import FloatLinears
from .relax_passes.linears import find_linears, layer_name
from .relax_passes.observe_inputs import OBSERVE, ObserveInputs
from .relax_passes.pipeline import compile_module
from .runtime.tvm_runtime import VirtualMachine, as_array, as_tensor, use_threads
from .targets import host_target
from .vm_callbacks import own_errors

__all__ = ["Calibration", "CalibrationWindows", "Observation", "calibration_source", "gram_passes", "observe"]

# Rows of a Gram matrix that are mirrored together.
_MIRROR_BLOCK = 256


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What calibration found.

    Attributes
    ----------
    squares
        Name of each sum -> `s [K]` float64, `s[k] = sum over tokens of x[k]^2` (the diagonal of the Hessian of the
        layer's squared output error, up to a factor). An input that was never fed has zeros.
    grams
        Name of each Gram matrix -> `G [K, K]` float32, the sum over tokens of `u u^T`, added up in float64, where u is
        the input x over the root of its mean square: every token counts alike (see `relax_passes.observe_inputs`).
    count
        How many tokens or samples were seen.
    source
        Where they came from.
    peak_bytes
        The most memory that the process has had resident until the end of this calibration.
    """

    squares: dict[str, np.ndarray]
    grams: dict[str, np.ndarray]
    count: int
    source: str
    peak_bytes: int


def gram_passes(sizes: Mapping[str, int], memory_budget: int) -> list[list[str]]:
    """Cut Gram matrices into passes over the calibration data whose float64 totals fit the memory.

    Parameters
    ----------
    sizes
        Name of each matrix -> K, in the order of the model: a pass runs the model no further than its last one.
    memory_budget
        Bytes that the totals of one pass may take. A pass has at least one matrix, however large it is.

    Returns
    -------
    list of list of str
        The names of each pass; no pass where there is no name.
    """
    passes: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        nbytes = 8 * size * size
        if not passes or nbytes > left:
            passes.append([])
            left = memory_budget
        passes[-1].append(name)
        left -= nbytes
    return passes


def observe(
    imported: ImportedModel,
    squares: Mapping[str, str],
    grams: Mapping[str, str],
    data: CalibrationData,
    *,
    parameters: ParameterSource | None = None,
    memory_budget: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Observation:
    """Run calibration data through the float model and add up squares and Gram matrices of the linears' inputs.

    Parameters
    ----------
    imported
        The float model.
    squares, grams
        Weight name -> name of the sum of squares, or of the Gram matrix, of its linear's input, in the order of the
        model. One weight for each distinct input is enough. The model runs no further than the last one needs. Linears
        of entry functions that there are no data for are left out.
    data
        Token windows, which run one at a time, each starting from an empty cache; or inputs of entry functions.
    parameters
        Where weights are read; the model's own if not given.
    memory_budget
        Bytes that Gram matrices and weights may take. What the Gram matrices leave holds as many float32 weights as it
        can; the others are read again for every window, one at a time. By default half of the memory there is.
    threads
        Threads to run on; by default every core that this process may use.
    progress
        Whether to show progress.

    Returns
    -------
    Observation
        Sums over all data.

    Raises
    ------
    CalibrationError
        When the input of a layer is infinite or not a number, naming the layer.
    ImportModelError
        When that is so because weights are, naming the layers.
    """
    budget = default_memory_budget() if memory_budget is None else memory_budget
    target = host_target(threads=threads)
    totals: dict[tuple[int, str], np.ndarray] = {}
    for entry in data.entries:
        own = {call.weight.name for call in find_linears(imported.module[entry])}
        own_squares, own_grams = (
            {weight: name for weight, name in names.items() if weight in own} for names in (squares, grams)
        )
        if own_squares or own_grams:
            found = _add_up(
                imported,
                target,
                entry,
                own_squares,
                own_grams,
                data,
                parameters or imported.parameters,
                budget,
                progress,
            )
            for key in list(found):
                totals[key] = totals[key] + found.pop(key) if key in totals else found.pop(key)
    return Observation(
        squares={name: totals.pop((1, name)) for name in dict.fromkeys(squares.values()) if (1, name) in totals},
        # Each float64 total makes place for the next float32 matrix.
        grams={name: _mirrored(totals.pop((2, name))) for name in dict.fromkeys(grams.values()) if (2, name) in totals},
        count=data.count,
        source=data.source,
        peak_bytes=peak_memory(),
    )


def _add_up(
    imported: ImportedModel,
    target: tvm.target.Target,
    entry: str,
    squares: Mapping[str, str],
    grams: Mapping[str, str],
    data: CalibrationData,
    parameters: ParameterSource,
    budget: int,
    progress: bool,
) -> dict[tuple[int, str], np.ndarray]:
    """Totals of one entry by (axes, name). What they were made with (code, cache, weights) is gone on return."""
    run, accumulator_types = _compile(imported, target, entry, squares, grams)
    totals = {key: _zeros(type_) for key, type_ in accumulator_types.items()}
    layers = {(1, name): layer_name(weight) for weight, name in squares.items()}
    layers |= {(2, name): layer_name(weight) for weight, name in grams.items()}
    weights = LazyWeights(parameters, max(budget - sum(total.nbytes for total in totals.values()), 0))
    samples: list[tuple[np.ndarray, ...]]
    if isinstance(data, CalibrationWindows):
        samples = [(ids[None], np.arange(len(ids))) for ids in data.ids]
        past, cache = imported.module[entry].params[2:4]
        state = [as_tensor(_zeros(past.ty)), as_tensor(_zeros(cache.ty))]
    else:
        samples, state = list(data.inputs[entry]), []
    for number, sample in enumerate(track(samples, "calibrate", progress)):
        inputs = [*(as_tensor(array) for array in sample), *state]
        with own_errors() as noting:
            run(*inputs, *(as_tensor(total) for total in totals.values()), noting(weights))
        if broken := [layers[key] for key, total in totals.items() if not _is_finite(total)]:
            _raise_not_finite(broken[0], number, data.source, weights)
    return totals


def _compile(
    imported: ImportedModel,
    target: tvm.target.Target,
    entry: str,
    squares: Mapping[str, str],
    grams: Mapping[str, str],
) -> tuple[Callable[..., Any], dict[tuple[int, str], relax.TensorType]]:
    """Compile `observe`: the function, and the types of its accumulators by (axes, name)."""
    mod = tvm.transform.Sequential([ObserveInputs(entry, squares, grams), FloatLinears(OBSERVE)])(imported.module)
    function = mod[OBSERVE]
    first, last = (int(f.attrs["num_input"]) for f in (imported.module[entry], function))
    use_threads(int(target.attrs["num-cores"]))
    with tempfile.TemporaryDirectory(prefix="hwpq-calibrate-") as folder:
        library = Path(folder) / "observe.so"
        compile_module(mod, target, library, lazy_weights=True)
        run = VirtualMachine(library).entry(OBSERVE)
    return run, {(int(param.ty.ndim), str(param.name)): param.ty for param in function.params[first:last]}


def _zeros(type_: relax.TensorType) -> np.ndarray:
    """Zeros, of which the system gives only the pages that are written: half a triangle, the used part of a cache."""
    shape = [int(size) for size in type_.shape.values]
    memory = mmap.mmap(-1, max(prod(shape) * np.dtype(str(type_.dtype)).itemsize, 1))
    return np.frombuffer(memory, str(type_.dtype), count=prod(shape)).reshape(shape)


def _is_finite(total: np.ndarray) -> bool:
    if total.ndim == 1:
        return bool(np.isfinite(total).all())
    # No element is larger than the largest on the diagonal; what comes of it is float32.
    return bool((np.diagonal(total) <= np.finfo(np.float32).max).all())


def _raise_not_finite(layer: str, window: int, source: str, weights: LazyWeights) -> None:
    damaged = [layer_name(name) for name in weights.asked if not np.isfinite(as_array(weights(0, name))).all()]
    if damaged:
        raise ImportModelError(
            f"{', '.join(damaged)}: infinite or not a number; the checkpoint is damaged, fetch or train it again."
        )
    raise CalibrationError(
        f"layer {layer}: its input is infinite, not a number, or too large to be squared, in calibration window "
        f"{window} of {source}: the model's activations overflow float32 on it; calibrate on other data, or "
        "switch calibration off (calibration=None, --calibration none)."
    )


def _mirrored(total: np.ndarray) -> np.ndarray:
    """The symmetric float32 matrix of a float64 one whose part below the diagonal means nothing."""
    result = np.empty(total.shape, np.float32)
    for start in range(0, len(total), _MIRROR_BLOCK):
        end = min(start + _MIRROR_BLOCK, len(total))
        corner = np.triu(total[start:end, start:end])
        result[start:end, start:end] = corner + np.triu(corner, 1).T
        result[start:end, end:] = total[start:end, end:]
        result[end:, start:end] = result[start:end, end:].T
    return result
