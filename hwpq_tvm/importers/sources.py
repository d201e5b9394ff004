"""Where weights are read: safetensors files, live torch models, and the check that they fit the model."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.imported_model import ParameterSource

INDEX_FILE = "model.safetensors.index.json"


def _float32(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


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
        """Read one weight as float32."""
        return _float32(self._tensors[name])


class SafetensorsSource:
    """Weights of a folder: one safetensors file, or shards with an index.

    Raises
    ------
    ImportModelError
        When the folder holds no safetensors, a shard is missing, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._files = _find_files(folder)
        self._where: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 -- no mapping
                        self._where[name] = file
                        self._shapes[name] = tuple(opened.get_slice(name).get_shape())
            except SafetensorError as error:
                raise ImportModelError(
                    f"{file} is damaged or was not copied whole ({error}); fetch it again"
                ) from error

    @property
    def nbytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self._files)

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._shapes[name]

    def load(self, name: str) -> np.ndarray:
        """Read one weight as float32."""
        with safe_open(self._where[name], framework="pt") as opened:
            return _float32(opened.get_tensor(name))


class NoWeights:
    """The weights of a model of which nothing but the structure is of interest: they have shapes, and no values."""

    nbytes = 0

    def __init__(self, model: torch.nn.Module) -> None:
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._shapes[name]

    def load(self, name: str) -> np.ndarray:
        """Raise ImportModelError: there is nothing to read."""
        raise ImportModelError(f"{name} can't be read: the model was imported without its weights; import it with them")


def _find_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            files = sorted({folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, AttributeError) as error:
            raise ImportModelError(f"{index} can't be read ({error!r}): expected JSON with a 'weight_map'") from error
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ImportModelError(f"{folder} lacks shards that {INDEX_FILE} names: {', '.join(missing)}; fetch them")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files and (pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])):
        raise ImportModelError(
            f"the weights in {folder} are pickled ({pickled[0].name}), expected safetensors: convert them with"
            " AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), if you trust their origin"
        )
    if not files:
        raise ImportModelError(f"{folder} holds no weights: expected model.safetensors, or shards and {INDEX_FILE}")
    return files


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

    def __init__(
        self, checkpoint: ParameterSource, names: Mapping[str, str], constants: Mapping[str, torch.Tensor]
    ) -> None:
        self._checkpoint = checkpoint
        self._names = names
        self._constants = constants

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        if name in self._constants:
            return tuple(self._constants[name].shape)
        return self._checkpoint.shape(self._names[name])

    def load(self, name: str) -> np.ndarray:
        """Read one weight as float32."""
        if name in self._constants:
            return _float32(self._constants[name])
        return self._checkpoint.load(self._names[name])


def match_names(
    available: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, tuple[str, ...]],
    *,
    source: str,
) -> dict[str, str]:
    """Find every weight of a model in its checkpoint.

    Parameters
    ----------
    available
        Shapes of the tensors of the checkpoint, by name.
    expected
        Shapes of the weights of the model, by name.
    aliases
        All names that a weight has in the model (tied weights have several).
    source
        The checkpoint's name for messages.

    Returns
    -------
    For each weight, its name in the checkpoint.

    Raises
    ------
    ImportModelError
        Naming all weights that are missing, that have another shape, or for which the model has no place.
    """
    found = {}
    for name in expected:
        candidates = [alias for alias in aliases.get(name, (name,)) if alias in available]
        if candidates:
            found[name] = candidates[0]
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"lacks {', '.join(missing)}")
    wrong = [
        f"{theirs} is {list(available[theirs])}, expected {list(expected[name])}"
        for name, theirs in found.items()
        if available[theirs] != expected[name]
    ]
    if wrong:
        problems.append(f"has other shapes than its configuration says ({'; '.join(wrong)})")
    known = {alias for name in expected for alias in aliases.get(name, (name,))}
    # Old checkpoints hold the rotary frequencies, which the configuration gives.
    extra = sorted(name for name in available if name not in known and not name.endswith("rotary_emb.inv_freq"))
    if extra:
        problems.append(
            f"has weights for which the model that its configuration describes has no place ({', '.join(extra)})"
        )
    if problems:
        raise ImportModelError(
            f"{source} {', and '.join(problems)}: the configuration and the weights must be of the same model"
        )
    return found
