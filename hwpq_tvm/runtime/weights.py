"""Weights of a compiled model: as its code takes them, in the memory of the host and then in that of the device."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ArtifactError
from .device import Device
from .manifest import TensorSpec
from .tvm_runtime import as_array, as_tensor


class Weights:
    """Weights in the order of the entries' arguments.

    Parameters
    ----------
    specs
        What the code expects.
    params
        Weights by name, as TVM tensors or NumPy arrays; every one of `specs`.
    device
        Where they are used.

    Attributes
    ----------
    tensors
        The weights: of the device once they were moved there, of the host before.

    Raises
    ------
    ArtifactError
        When a weight is missing, or of another shape or dtype.
    """

    def __init__(self, specs: Sequence[TensorSpec], params: Mapping[str, Any], device: Device) -> None:
        self._specs = specs
        self._device = device
        self._on_device = not device.copies
        self.tensors = [_parameter(params, spec) for spec in specs]

    def move(self) -> None:
        """Copy them to the device; nothing happens where they are there already.

        Raises
        ------
        TargetError
            When the device has too little memory.
        """
        if self._on_device:
            return
        with self._device.room_for("the weights", self.nbytes):
            self.tensors = [self._device.from_host(as_array(tensor)) for tensor in self.tensors]
        self._on_device = True

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights by name; copies of those that a GPU holds."""
        host = self._device.to_host if self._on_device else as_array
        return {spec.name: host(tensor) for spec, tensor in zip(self._specs, self.tensors, strict=True)}

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(map(_nbytes, self._specs))

    @property
    def addresses(self) -> dict[int, int]:
        """Where each lies, and its bytes."""
        return {tensor.data_ptr(): _nbytes(spec) for spec, tensor in zip(self._specs, self.tensors, strict=True)}

    @property
    def names(self) -> dict[int, str]:
        """Where each lies, and its name."""
        return {tensor.data_ptr(): spec.name for spec, tensor in zip(self._specs, self.tensors, strict=True)}


def _parameter(params: Mapping[str, Any], spec: TensorSpec) -> Any:
    if spec.name not in params:
        raise ArtifactError(f"weight {spec.name} is missing: build the model again.")
    tensor = params[spec.name]
    if isinstance(tensor, np.ndarray):
        tensor = as_tensor(tensor)
    if tuple(tensor.shape) != spec.shape or str(tensor.dtype) != spec.dtype:
        raise ArtifactError(
            f"weight {spec.name} is {tensor.dtype} of shape {tuple(tensor.shape)}, the code expects {spec.dtype} of "
            f"shape {spec.shape}: build the model again."
        )
    return tensor


def _nbytes(spec: TensorSpec) -> int:
    return math.prod(int(size) for size in spec.shape) * np.dtype(spec.dtype).itemsize
