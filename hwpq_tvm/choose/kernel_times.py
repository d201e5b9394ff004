"""What a decode step spends in each unit, for each of its schemes: measured as it would run, or predicted."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from ..bandwidth import uncached_bytes
from ..cpu import host_cores, missing_features
from ..errors import UnsupportedSchemeError
from ..memory import available_memory
from ..progress import track
from ..relax_passes.plan import LinearGroup
from ..runtime.tvm_runtime import aligned_empty, as_tensor, use_threads
from ..schedules import registry
from ..schedules.cuda.devices import reference_device
from ..schedules.cuda.space import best
from ..schedules.cuda.work import Linear
from ..schedules.layouts import mma
from ..schedules.layouts import packed as layouts
from ..schedules.linear_workload import LinearWorkload
from ..schedules.records import TuningRecords
from ..targets import cpu_features, cpu_part
from ..tuning import random_tensors
from .units import Unit

REPEAT = 40
# Calls of a kernel, on as many copies of its weight, that are timed together.
_CALLS = 16


@dataclass(frozen=True, slots=True, eq=False)
class KernelTimes:
    """Times of all units.

    Attributes
    ----------
    seconds
        Name of a unit -> name of a candidate -> seconds of a decode step.
    source
        Where they come from: "measured here", "predicted for A100", or "predicted: in proportion to bytes".
    absolute
        Whether they are seconds, and not only in proportion to them.
    """

    seconds: Mapping[str, Mapping[str, float]]
    source: str
    absolute: bool = True


def kernel_times(
    units: Sequence[Unit],
    target: Target,
    records: TuningRecords,
    *,
    tokens: int = 1,
    repeat: int = REPEAT,
    progress: bool,
) -> KernelTimes:
    """Find what the units of a model take in a decode step.

    On this machine every distinct kernel is compiled as a build would compile it, and measured: all schemes of a shape
    in turns, on as many copies of the weight as make up the model, or are more than caches hold. For a GPU times are
    predicted from its datasheet; for CPUs whose code does not run here they are taken to be in proportion to the bytes
    that are read, which is what bounds a single token.

    Parameters
    ----------
    units
        The units.
    target
        What they will run on.
    records
        Tuning records that kernels are made by.
    tokens
        Tokens that a step decodes, one of each sequence.
    repeat
        Measurements of each kernel. The fastest one counts: what other programs take away, which is much for kernels of
        some microseconds on several threads, says nothing of a kernel.
    progress
        Whether to show progress.
    """
    groups = {
        (unit.name, option): [group for group in found if group.is_linear and unit.runs]
        for unit in units
        for option, found in unit.options.items()
    }
    seconds: dict[LinearWorkload, float]
    if target.kind.name == "cuda":
        source = f"predicted for {reference_device(target).name}"
        seconds = {
            workload: _predicted(workload, target)
            for workload in {_workload(group, tokens) for found in groups.values() for group in found}
        }
    elif not missing_features(cpu_features(target)):
        source = "measured here"
        seconds = {}
        shapes = _by_shape(units, tokens)
        sizes = _sizes(units)
        for together in track(shapes, "kernel times", progress):
            seconds |= _measured(together, sizes, target, records, repeat)
    else:
        bytes_read = {unit.name: {each: unit.runs * unit.nbytes(each) for each in unit.options} for unit in units}
        return KernelTimes(bytes_read, "predicted: in proportion to bytes", absolute=False)
    times = {
        unit.name: {
            option: unit.runs * sum(seconds[_workload(group, tokens)] for group in groups[unit.name, option])
            for option in unit.options
        }
        for unit in units
    }
    return KernelTimes(times, source)


def _workload(group: LinearGroup, tokens: int) -> LinearWorkload:
    weights = group.format
    return LinearWorkload(
        weight_format=weights.name,
        activation_dtype=weights.activation_dtype,
        group_size=weights.group_size,
        M=tokens,
        N=sum(weights.rows(member.N) for member in group.members),
        K=group.K,
    )


def _by_shape(units: Sequence[Unit], tokens: int) -> list[list[tuple[LinearWorkload, str]]]:
    """Distinct kernels with the candidate that they are of, those of one shape together."""
    shapes: dict[object, dict[LinearWorkload, str]] = {}
    for unit in units:
        if not unit.runs:
            continue
        for option, groups in unit.options.items():
            for group in groups:
                shape = group.K, tuple(member.N for member in group.members)
                shapes.setdefault(shape, {})[_workload(group, tokens)] = option
    return [list(found.items()) for found in shapes.values()]


def _sizes(units: Sequence[Unit]) -> dict[str, int]:
    """Name of a candidate -> bytes of the model in it, as far as units have it."""
    sizes: dict[str, int] = {}
    for unit in units:
        for option in unit.options:
            sizes[option] = sizes.get(option, 0) + unit.nbytes(option)
    return sizes


def _predicted(workload: LinearWorkload, target: Target) -> float:
    if workload.weight_format not in mma.LAYOUTS:
        raise UnsupportedSchemeError(
            f"{workload.label}: no time of portable kernels is predicted for GPUs. Choose by --target-size, or leave "
            "out --activations float."
        )
    linear = Linear(workload.weight_format, workload.N, workload.K, workload.group_size)
    return best(linear, reference_device(target), workload.M).prediction.microseconds * 1e-6


def _measured(
    together: Sequence[tuple[LinearWorkload, str]],
    sizes: Mapping[str, int],
    target: Target,
    records: TuningRecords,
    repeat: int,
) -> dict[LinearWorkload, float]:
    """Measure kernels in turns; seconds of a call."""
    functions = {}
    for number, (workload, _) in enumerate(together):
        func = workload.func()
        found = records.plan(func, target)
        scheduled, _choice = registry.schedule(func, target, None if found is None else found[0])
        functions[f"kernel{number}"] = scheduled.with_attr("global_symbol", f"kernel{number}")
    library = tvm.compile(tvm.IRModule(functions), target=target)
    threads = int(cpu_part(target).attrs["num-cores"])
    most = min(uncached_bytes(), available_memory() // 2 // len(together))
    contestants = [
        (library[f"kernel{number}"], itertools.cycle(_arguments(workload, min(most, sizes[option]))))
        for number, (workload, option) in enumerate(together)
    ]
    samples: list[list[float]] = [[] for _ in together]
    use_threads(min(threads, host_cores()))
    for turn in range(repeat + 1):
        for (kernel, arguments), seconds in zip(contestants, samples, strict=True):
            calls = list(itertools.islice(arguments, _CALLS))
            start = time.perf_counter()
            for each in calls:
                kernel(*each)
            if turn:
                seconds.append((time.perf_counter() - start) / _CALLS)
    return {workload: min(each) for (workload, _), each in zip(together, samples, strict=True)}


def _arguments(workload: LinearWorkload, footprint: int) -> list[tuple[Any, ...]]:
    """Random arguments of a kernel: copies of its weight that together have at least `footprint` bytes."""
    rng = np.random.default_rng(0)
    tensors = layouts.tensors(workload.weight_format, workload.group_size, workload.N, workload.K)
    nbytes = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in tensors.values())
    activations = [
        as_tensor(array) for array in random_tensors.activations(workload.activation_dtype, workload.M, workload.K, rng)
    ]
    out = as_tensor(np.zeros((1, workload.M, layouts.rows(workload.weight_format, workload.N)), np.float32))
    first = []
    for name, (shape, dtype) in tensors.items():
        memory = aligned_empty(prod(shape) * np.dtype(dtype).itemsize)
        random_tensors.fill(memory, workload.weight_format, name, dtype, rng)
        first.append(memory.view(dtype).reshape(shape))
    copies = [first, *([_copied(part) for part in first] for _ in range(-(-footprint // nbytes) - 1))]
    return [(*activations, *map(as_tensor, parts), out) for parts in copies]


def _copied(array: np.ndarray) -> np.ndarray:
    copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
