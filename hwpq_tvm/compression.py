"""Runs the `transform_params` that `relax_passes.compress_linears` emitted: layer by layer, on the host."""

import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from .errors import ImportModelError
from .importers import ParameterSource
from .progress import bar
from .relax_passes.compress_linears import INPUT_SQUARES, STATISTICS, TRANSFORM
from .relax_passes.linears import OUTPUT_NAMES
from .relax_passes.pipeline import Dump, compile_module, no_dump
from .runtime.tvm_runtime import VirtualMachine, as_array, as_tensor, use_threads
from .targets import host_target


@dataclass(frozen=True, slots=True)
class CompressedParameters:
    """What compression made.

    Attributes
    ----------
    packed
        Name of each packed parameter of the inference functions -> array.
    statistics
        Layer name -> sums over its weights `[4]`: `(w-v)^2 s`, `w^2 s`, `(w-v)^2`, `w^2`, where v is the weight that is
        left and s the input squares (ones where nothing was calibrated).
    """

    packed: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


def run_transform(
    mod: tvm.IRModule,
    parameters: ParameterSource,
    input_squares: Mapping[str, np.ndarray],
    *,
    progress: bool,
    dump: Dump = no_dump,
) -> CompressedParameters:
    """Compile `transform_params` for the host and run it, one layer in memory at a time.

    Parameters
    ----------
    mod
        A module with `transform_params`.
    parameters
        Where the weights come from.
    input_squares
        Name -> `s [K]`; a name that is missing gets ones.
    progress
        Whether to show progress.
    dump
        As for `compile_module`.

    Returns
    -------
    CompressedParameters
        Everything the inference functions ask for beyond the weights that stay as they are.

    Raises
    ------
    ImportModelError
        When weights are infinite or not a number, naming all such layers.
    """
    function = mod[TRANSFORM]
    inputs = [(str(param.name), [int(dim) for dim in param.ty.shape.values]) for param in function.params]
    target = host_target()
    outputs = [str(name) for name in function.attrs[OUTPUT_NAMES]]
    packed: dict[str, np.ndarray] = {}
    statistics: dict[str, np.ndarray] = {}

    def get(index: int) -> Any:
        name, shape = inputs[index]
        if name.endswith(INPUT_SQUARES):
            # Scaled to a mean of one, which changes no choice and keeps float32 far from its limits.
            squares = np.asarray(input_squares.get(name, np.ones(shape)), np.float64)
            return as_tensor((squares / max(squares.mean(), np.finfo(np.float64).tiny)).astype(np.float32))
        return as_tensor(parameters.load(name))

    with bar("compress", sum(name.endswith(STATISTICS) for name in outputs), progress) as shown:

        def put(index: int, value: Any) -> None:
            name = outputs[index]
            if name.endswith(STATISTICS):
                statistics[name.removesuffix(STATISTICS)] = as_array(value).sum(axis=0, dtype=np.float64)
                shown.advance(shown.task_ids[0])
            else:
                # The virtual machine reuses the storage of `value` for the next layer.
                packed[name] = as_array(value).copy()

        # The names are this call's own: two builds in one process don't get each other's weights.
        get_name, put_name = (f"hwpq.{uuid.uuid4().hex}.{what}" for what in ("get", "put"))
        tvm.register_global_func(get_name, get)
        tvm.register_global_func(put_name, put)
        try:
            with tempfile.TemporaryDirectory(prefix="hwpq-compress-") as folder:
                library = Path(folder) / "transform.so"
                compile_module(
                    mod, target, library, lazy=(get_name, put_name), dump=lambda phase, m: dump(f"transform_{phase}", m)
                )
                transform = VirtualMachine(library).entry(TRANSFORM)
            use_threads(int(target.attrs["num-cores"]))
            transform()
        finally:
            tvm_ffi.remove_global_func(get_name)
            tvm_ffi.remove_global_func(put_name)
    if damaged := [name for name, sums in statistics.items() if not np.isfinite(sums).all()]:
        raise ImportModelError(
            f"{', '.join(damaged)}: weights or calibration sums that are infinite or not a number; the checkpoint is "
            "damaged, fetch or train it again."
        )
    return CompressedParameters(packed, statistics)
