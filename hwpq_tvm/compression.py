"""Runs the `transform_params` that `relax_passes.transform_params` emits: layer by layer, on the host."""

import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from .errors import ImportModelError
from .finished_layers import FinishedLayers
from .importers import ParameterSource
from .progress import bar
from .relax_passes.linears import OUTPUT_NAMES
from .relax_passes.packing import compressed_types, input_gram_name, input_squares_name
from .relax_passes.pipeline import Dump, compile_module, no_dump
from .relax_passes.plan import LinearGroup
from .relax_passes.transform_params import OUTPUT_ERROR, STATISTICS, TRANSFORM, transform_module
from .runtime.tvm_runtime import VirtualMachine, as_array, as_tensor, use_threads
from .schedules.compress.quantization import LARGEST, NON_FINITE
from .targets import host_target
from .vm_callbacks import own_errors

__all__ = ["OUTPUT_ERROR", "SECONDS", "STATISTICS", "compress_groups"]

SECONDS = ".seconds"


def compress_groups(
    groups: Sequence[LinearGroup],
    parameters: ParameterSource,
    squares: Mapping[str, np.ndarray],
    grams: Mapping[str, np.ndarray],
    finished: FinishedLayers,
    *,
    progress: bool,
    threads: int | None = None,
    dump: Dump = no_dump,
) -> None:
    """Compile the compression of some groups for the host and run it, one layer in memory at a time.

    Parameters
    ----------
    groups
        What to compress.
    parameters
        Where the weights come from.
    squares
        Name -> `s [K]`, sums of squared inputs; a name that is missing gets ones.
    grams
        Name -> `G [K, K]`, the Gram matrices of the inputs of the layers that are reconstructed.
    finished
        Gets each group when it is done: its packed parameters, and for each layer `NAME.statistics` (per row, see
        `schedules.compress.quantization`), `NAME.seconds` and, where it was reconstructed, `NAME.output_error`.
    progress
        Whether to show progress.
    threads
        Threads to run on; by default every core that this process may use.
    dump
        As for `compile_module`.

    Raises
    ------
    ImportModelError
        When weights are infinite or not a number, naming all such layers.
    """
    mod = transform_module(groups)
    dump("transform", mod)
    function = mod[TRANSFORM]
    inputs = [(str(param.name), tuple(int(size) for size in param.ty.shape.values)) for param in function.params]
    outputs = [str(name) for name in function.attrs[OUTPUT_NAMES]]
    source = _Inputs(groups, parameters, squares, grams)
    with bar("compress", sum(len(group.members) for group in groups), progress) as shown:
        sink = _Outputs(groups, finished, lambda: shown.advance(shown.task_ids[0]))
        # The names are this call's own: two builds in one process don't get each other's weights.
        get_name, put_name = (f"hwpq.{uuid.uuid4().hex}.{what}" for what in ("get", "put"))
        with own_errors() as noting:
            tvm.register_global_func(get_name, noting(lambda index: as_tensor(source.get(*inputs[index]))))
            tvm.register_global_func(put_name, noting(lambda index, value: sink.put(outputs[index], as_array(value))))
            try:
                _run(mod, host_target(threads=threads), (get_name, put_name), sink, dump)
            finally:
                tvm_ffi.remove_global_func(get_name)
                tvm_ffi.remove_global_func(put_name)
    if sink.damaged:
        raise ImportModelError(
            f"{', '.join(sink.damaged)}: weights that are infinite or not a number; the checkpoint is damaged, fetch "
            "or train it again."
        )


def _run(mod: tvm.IRModule, target: tvm.target.Target, lazy: tuple[str, str], sink: "_Outputs", dump: Dump) -> None:
    with tempfile.TemporaryDirectory(prefix="hwpq-compress-") as folder:
        library = Path(folder) / "transform.so"
        compile_module(mod, target, library, lazy=lazy, dump=lambda phase, m: dump(f"transform_{phase}", m))
        transform = VirtualMachine(library).entry(TRANSFORM)
    use_threads(int(target.attrs["num-cores"]))
    sink.start()
    transform()


class _Inputs:
    """Hands the transformation what it asks for by name."""

    def __init__(
        self,
        groups: Sequence[LinearGroup],
        parameters: ParameterSource,
        squares: Mapping[str, np.ndarray],
        grams: Mapping[str, np.ndarray],
    ) -> None:
        self._parameters, self._squares, self._grams = parameters, squares, grams
        self._square_names = {input_squares_name(group) for group in groups}
        self._gram_names = {input_gram_name(group) for group in groups}

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        # Input squares and Gram matrices are brought to a mean of one, which changes no choice and keeps float32 far
        # from its limits; where nothing was seen, every input counts alike.
        if name in self._square_names:
            squares = np.asarray(self._squares.get(name, np.ones(shape)), np.float64)
            mean = squares.mean()
            return (squares / mean if mean > 0 else np.ones(shape)).astype(np.float32)
        if name in self._gram_names:
            gram = self._grams[name]
            mean = float(gram.diagonal().mean(dtype=np.float64))
            return gram / np.float32(mean) if mean > 0 else np.eye(*shape, dtype=np.float32)
        return self._parameters.load(name)


class _Outputs:
    """Collects the results of each group, and hands a group on when it is whole."""

    def __init__(self, groups: Sequence[LinearGroup], finished: FinishedLayers, advance: Any) -> None:
        self._finished, self._advance = finished, advance
        # Results of a group come one by one, in no order that could be relied on.
        self._group = {name: group for group in groups for name in _result_names(group)}
        self._arrays: dict[str, dict[str, np.ndarray]] = {}
        self.damaged: list[str] = []
        self._clock = 0.0

    def start(self) -> None:
        self._clock = time.perf_counter()

    def put(self, name: str, array: np.ndarray) -> None:
        group = self._group[name]
        arrays = self._arrays.setdefault(group.name, {})
        arrays[name] = array.copy()  # the virtual machine reuses the storage for the next layer
        if name.endswith(STATISTICS):
            layer = name.removesuffix(STATISTICS)
            if array[:, NON_FINITE].any() or not np.isfinite(array[:, LARGEST]).all():
                self.damaged.append(layer)
            now = time.perf_counter()
            arrays[layer + SECONDS] = np.array([now - self._clock])
            self._clock = now
            self._advance()
        if all(result in arrays for result in _result_names(group)):
            del self._arrays[group.name]
            if not any(linear.name in self.damaged for linear in group.members):
                self._finished.add(group, arrays)


def _result_names(group: LinearGroup) -> list[str]:
    """Names of everything that the transformation makes of a group."""
    errors = [linear.name + OUTPUT_ERROR for linear in group.members if linear.needs_gram]
    return [*compressed_types(group), *errors, *(linear.name + STATISTICS for linear in group.members)]
