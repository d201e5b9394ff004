"""Where weights are read: safetensors files, live torch models, and the weights of an imported model by name."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.imported_model import ParameterSource

INDEX_FILE = "model.safetensors.index.json"

# Types of safetensors that torch has; another one is refused where it is met.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return floats as a C-contiguous float32 array, other types as they are."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype).contiguous().numpy()


class StoredTensors(Protocol):
    """Tensors as they are stored, by the names that they have there."""

    @property
    def nbytes(self) -> int:
        """Size of what is stored."""

    def names(self) -> set[str]:
        """Names of all tensors."""

    def meta(self, name: str) -> torch.Tensor:
        """Shape and type of a tensor, as a tensor on the meta device."""

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor."""

    def read_index(self, name: str, index: int) -> torch.Tensor:
        """Read `tensor[index]`, and no more than that where the storage allows."""

    def reads_parts(self, name: str) -> bool:
        """Whether the storage of a tensor allows that."""


class Checkpoint(ParameterSource, Protocol):
    """Weights by their names in the model, of which one can ask what there are."""

    def names(self) -> set[str]:
        """Names of all weights, and of tensors for which the model has no place."""

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Read `weight[index]`, without the rest of the weight where that can be."""

    def reads_parts(self, name: str) -> bool:
        """Whether `load_index` leaves the rest of a weight unread."""


class TorchSource:
    """Weights of a live model: named tensors."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return tuple(self._tensors[name].shape)

    def load(self, name: str) -> np.ndarray:
        """Read one weight; floats become float32."""
        return as_array(self._tensors[name])

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Read `weight[index]`."""
        return as_array(self._tensors[name][index])

    def reads_parts(self, name: str) -> bool:
        """Any part is read alone."""
        return True


class SafetensorsFiles:
    """Tensors of a folder: one safetensors file, or shards with an index.

    Raises
    ------
    ImportModelError
        When the folder holds no safetensors, a shard is missing, or files are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._files = _find_files(folder)
        self._where: dict[str, Path] = {}
        self._meta: dict[str, torch.Tensor] = {}
        damaged, unknown = [], []
        for file in self._files:
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 -- no mapping
                        stored = opened.get_slice(name)
                        self._where[name] = file
                        if (dtype := _DTYPES.get(stored.get_dtype())) is None:
                            unknown.append(f"{name} ({stored.get_dtype()})")
                            continue
                        self._meta[name] = torch.empty(stored.get_shape(), dtype=dtype, device="meta")
            except (SafetensorError, OSError) as error:
                damaged.append(f"{file.name} ({str(error).strip()})")
        if damaged:
            raise ImportModelError(
                f"{folder}: {', '.join(damaged)}: damaged or not copied whole; fetch {_them(damaged)} again"
            )
        if unknown:
            raise ImportModelError(
                f"{folder} holds types of numbers that can't be read: {', '.join(unknown)}; expected"
                f" {', '.join(_DTYPES)}: give the original model"
            )

    @property
    def nbytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self._files)

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._where)

    def meta(self, name: str) -> torch.Tensor:
        """Shape and type of a tensor, as a tensor on the meta device."""
        return self._meta[name]

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        with safe_open(self._where[name], framework="pt") as opened:
            return opened.get_tensor(name)

    def read_index(self, name: str, index: int) -> torch.Tensor:
        """Read `tensor[index]` from the file, and no more than that."""
        with safe_open(self._where[name], framework="pt") as opened:
            return opened.get_slice(name)[index]

    def reads_parts(self, name: str) -> bool:
        """Any part is read alone."""
        return True


class NoWeights:
    """The weights of a model of which nothing but the structure is of interest: they have shapes, and no values."""

    nbytes = 0

    def __init__(self, model: torch.nn.Module) -> None:
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._shapes[name]

    def load(self, name: str) -> np.ndarray:
        """Raise ImportModelError: there is nothing to read."""
        raise ImportModelError(f"{name} can't be read: the model was imported without its weights; import it with them")

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Raise ImportModelError, as `load` does."""
        return self.load(name)

    def reads_parts(self, name: str) -> bool:
        """Nothing is read at all."""
        return True


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors, or an index that names some."""
    return (folder / INDEX_FILE).is_file() or any(folder.glob("*.safetensors"))


def _them(things: list[str]) -> str:
    return "it" if len(things) == 1 else "them"


def _find_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            files = sorted({folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ImportModelError(f"{index} can't be read ({error!r}): expected JSON with a 'weight_map'") from error
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ImportModelError(
                f"{folder} lacks shards that {INDEX_FILE} names: {', '.join(missing)}; fetch {_them(missing)}"
            )
        return files
    # Some publishers put the whole model beside its shards or a copy of it in their own names into the same folder.
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files and (pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])):
        raise ImportModelError(
            f"the weights in {folder} are pickled ({pickled[0].name}), expected safetensors: convert them with"
            f" transformers.{_class_name(folder)}.from_pretrained(folder).save_pretrained(new_folder), if you trust"
            " their origin"
        )
    if not files:
        raise ImportModelError(f"{folder} holds no weights: expected model.safetensors, or shards and {INDEX_FILE}")
    return files


def _class_name(folder: Path) -> str:
    """Name of the class that a folder's configuration gives its model."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return str(json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0])
    return "AutoModel"


class ModelParameters:
    """The weights of an imported model, by the names that its Relax functions use.

    Parameters
    ----------
    checkpoint
        Where the parameters are read.
    names
        For each weight that is read there: its name there.
    constants
        The other weights: buffers and constants of the model's code.
    """

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str], constants: Mapping[str, torch.Tensor]) -> None:
        self._checkpoint = checkpoint
        self._names = names
        self._constants = {name: value for name, value in constants.items() if name not in names}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        if name in self._constants:
            return tuple(self._constants[name].shape)
        return self._checkpoint.shape(self._names[name])

    def load(self, name: str) -> np.ndarray:
        """Read one weight; floats become float32."""
        if name in self._constants:
            return as_array(self._constants[name])
        return self._checkpoint.load(self._names[name])

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Read `weight[index]`, without the rest where the checkpoint can."""
        if name in self._constants:
            return as_array(self._constants[name][index])
        return self._checkpoint.load_index(self._names[name], index)

    def reads_parts(self, name: str) -> bool:
        """Whether `load_index` leaves the rest of a weight unread."""
        return name in self._constants or self._checkpoint.reads_parts(self._names[name])
