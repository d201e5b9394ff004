"""params.safetensors, written and read as a stream that is hashed on its way, without a second copy in memory."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError
from .tvm_runtime import ALIGNMENT, aligned_empty

_DTYPES = {
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_CHUNK = 1 << 24  # bytes


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> str:
    """Write a safetensors file and return its sha256 (hexadecimal).

    Tensors whose size is a multiple of the alignment come first, and the header is padded to it: nearly all of them
    can then be used where they lie once the file is in memory.
    """
    order = sorted(tensors, key=lambda name: tensors[name].nbytes % ALIGNMENT != 0)
    header, offset = {}, 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (struct.pack("<Q", len(text)), text):
            digest.update(part)
            file.write(part)
        for name in order:
            data = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data
            for start in range(0, len(data), _CHUNK):
                digest.update(data[start : start + _CHUNK])
                file.write(data[start : start + _CHUNK])
    return digest.hexdigest()


def read_tensors(path: Path, sha256: str, *, progress: Callable[[int], None] | None = None) -> dict[str, np.ndarray]:
    """Read a safetensors file whose hash is known.

    Parameters
    ----------
    path
        The file.
    sha256
        Hash that it must have (hexadecimal).
    progress
        Called with the number of bytes after each chunk.

    Returns
    -------
    dict of str to numpy.ndarray
        Tensors by name. They share one block of memory; those that would not be aligned in it are copies.

    Raises
    ------
    ArtifactError
        When the hash differs or the file is not a safetensors file. The message lacks the file's name.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = path.stat().st_size
        data = aligned_empty(size)
        view = data.data
        done = 0
        while count := file.readinto(view[done : done + _CHUNK]):
            digest.update(view[done : done + count])
            done += count
            if progress:
                progress(count)
    if done != size or digest.hexdigest() != sha256:
        raise ArtifactError("is damaged: its sha256 is not the one in manifest.json")
    try:
        length = struct.unpack_from("<Q", data.data)[0]
        header: dict[str, Any] = json.loads(bytes(data[8 : 8 + length]))
        start = 8 + length
        return {name: _tensor(data[start:], info) for name, info in header.items() if name != "__metadata__"}
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise ArtifactError(f"is not a safetensors file that this hwpq_tvm reads ({error})") from error


def _tensor(data: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
    begin, end = info["data_offsets"]
    raw = data[begin:end]
    if raw.ctypes.data % ALIGNMENT:
        copy = aligned_empty(raw.nbytes)
        copy[...] = raw
        raw = copy
    return raw.view(_DTYPES[info["dtype"]]).reshape(info["shape"])
