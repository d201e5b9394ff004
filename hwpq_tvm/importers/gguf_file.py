"""Reads GGUF files: metadata at once, tensors one by one.

The `gguf` package's own reader makes several NumPy arrays for each token of the vocabulary, which takes seconds; the
format itself is simple (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import _type_traits, dequantize

from hwpq_tvm.errors import ImportModelError

MAGIC = b"GGUF"

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where one tensor of a file lies, its shape in NumPy's order, and its type."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    nbytes: int


class GGUFFile:
    """One GGUF file.

    Attributes
    ----------
    path
        Where it is.
    metadata
        All keys and values.
    tensors
        What tensors there are, by GGUF name.

    Raises
    ------
    ImportModelError
        When the file is no GGUF file, is cut off, or holds types of tensors that nobody can read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = file.seek(0, 2)
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        if self._data[:4] != MAGIC:
            raise ImportModelError(f"{path} is no GGUF file: it starts with {bytes(self._data[:4])!r}, not {MAGIC!r}")
        self._position = 4
        try:
            self.metadata, self.tensors = self._read_header()
        except (struct.error, LookupError, ArithmeticError, RecursionError, ValueError, TypeError) as error:
            raise ImportModelError(
                f"the header of {path} can't be read ({type(error).__name__}: {error}): the file is damaged or was not"
                " copied whole; fetch it again"
            ) from error
        end = max((tensor.start + tensor.nbytes for tensor in self.tensors.values()), default=0)
        if end > size:
            raise ImportModelError(
                f"{path} has {size} bytes, but its tensors end at byte {end}: it was not copied whole; fetch it again"
            )

    def load(self, name: str, index: int | None = None) -> np.ndarray:
        """Read one tensor as float32, or `tensor[index]` of it."""
        tensor = self.tensors[name]
        shape, start, nbytes = tensor.shape, tensor.start, tensor.nbytes
        if index is not None:
            nbytes //= shape[0]
            shape, start = shape[1:], start + index * nbytes
        raw = np.frombuffer(self._data, np.uint8, nbytes, start)
        if tensor.type in _PLAIN:
            return raw.view(_PLAIN[tensor.type]).reshape(shape).astype(np.float32)
        rows = math.prod(shape[:-1])
        return dequantize(raw.reshape(rows, -1), tensor.type).reshape(shape).astype(np.float32, copy=False)

    def _unpack(self, form: str) -> Any:
        values = struct.unpack_from(form, self._data, self._position)
        self._position += struct.calcsize(form)
        return values[0] if len(values) == 1 else values

    def _string(self) -> str:
        length = self._unpack("<Q")
        text = self._data[self._position : self._position + length]
        if len(text) < length:
            raise ValueError("a string is cut off")
        self._position += length
        return text.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._unpack(_SCALARS[kind])
        element, count = self._unpack("<IQ")
        if element in (_STRING, _ARRAY):
            return [self._value(element) for _ in range(count)]
        values = self._unpack(f"<{count}{_SCALARS[element][1]}") if count else []
        return [values] if count == 1 else list(values)

    def _read_header(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        version, tensor_count, value_count = self._unpack("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3")
        metadata = {}
        for _ in range(value_count):
            key = self._string()
            metadata[key] = self._value(self._unpack("<I"))
        entries = []
        for _ in range(tensor_count):
            name = self._string()
            dims = [self._unpack("<Q") for _ in range(self._unpack("<I"))]
            number, offset = self._unpack("<IQ")
            kind = GGMLQuantizationType(number)
            if kind not in _PLAIN and kind not in _type_traits:
                raise ValueError(f"tensor {name} is of type {kind.name}, which the gguf package can't read")
            entries.append((name, tuple(reversed(dims)), kind, offset))
        alignment = metadata.get("general.alignment", 32)
        start = -(-self._position // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in entries:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            tensors[name] = GGUFTensor(shape, kind, start + offset, math.prod(shape) // block * block_bytes)
        return metadata, tensors
