"""A checkpoint under the names of the model: transformers' own renamings and conversions, one weight at a time.

transformers changes how it names and stores weights inside a model, and keeps a table (`conversion_mapping`) of what
has to be done with checkpoints: names that changed, one matrix that was three, one matrix per expert that became a
slice of a stack. The table is applied here to names at once, to shapes on the meta device, and to values only when a
weight is read.
"""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.sources import StoredTensors, as_array


@dataclass(frozen=True, slots=True)
class _Conversion:
    """Stored tensors that one converter turns into weights.

    Attributes
    ----------
    converter
        What it does with them.
    target
        Name of the weight, or of the first of several.
    sources
        `(pattern of the converter, stored name)`, in the order in which they are collected.
    """

    converter: WeightConverter
    target: str
    sources: tuple[tuple[str, str], ...]


class ConvertedCheckpoint:
    """The weights of a model in stored tensors of any age.

    Parameters
    ----------
    stored
        The tensors.
    model
        The model; its parameters are not read and may be on the meta device.
    source
        The checkpoint's name for messages.

    Raises
    ------
    ImportModelError
        When stored tensors can't be converted, naming all of them.
    """

    def __init__(self, stored: StoredTensors, model: PreTrainedModel, *, source: str) -> None:
        self._stored, self._model = stored, model
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._plain: dict[str, str] = {}
        self._converted: dict[str, _Conversion] = {}
        conversions = self._rename()
        problems = []
        for conversion in conversions:
            try:
                found = self._convert(conversion, stored.meta)
            except Exception as error:
                stored_names = ", ".join(name for _, name in conversion.sources[:4])
                problems.append(f"{conversion.target} from {stored_names} ({_first_line(error)})")
                continue
            for name, tensor in found.items():
                self._converted[name], self._shapes[name] = conversion, tuple(tensor.shape)
        self._check_types(source)
        if problems:
            raise ImportModelError(
                f"{source} holds weights that transformers' conversion for {type(model).__name__} does not fit:"
                f" {'; '.join(problems)}: the configuration and the weights must be of the same model"
            )

    def _rename(self) -> list[_Conversion]:
        """Give every stored tensor its name in the model, or its conversion."""
        model = self._model
        transforms = get_model_conversion_mapping(model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
        expected = model.state_dict()
        prefix = model.base_model_prefix
        ignored = _ignored(model)
        conversions: dict[str, _Conversion] = {}
        # The order is transformers' own: it decides which expert is which, and some renamings remember what they saw.
        for stored in sorted(self._stored.names(), key=dot_natural_key):
            name, pattern = rename_source_key(stored, renamings, converters, prefix, expected)
            if name not in expected and stored in expected:
                name, pattern = rename_source_key(stored, [], [], prefix, expected)
            if name in expected and pattern is not None:
                first = _Conversion(by_pattern[pattern], name, ())
                so_far = conversions.get(name, first)
                conversions[name] = replace(so_far, sources=(*so_far.sources, (pattern, stored)))
            elif name in expected:
                self._plain[name] = stored
                self._shapes[name] = tuple(self._stored.meta(stored).shape)
            elif ignored is None or not ignored.search(name):
                self._plain[stored] = stored
                self._shapes[stored] = tuple(self._stored.meta(stored).shape)
        return list(conversions.values())

    def _check_types(self, source: str) -> None:
        """Refuse what stands for a float and is none, nor one that means anything without a scale."""
        expected = self._model.state_dict()
        wrong: dict[str, list[str]] = {}
        for name, stored in self._plain.items():
            dtype = self._stored.meta(stored).dtype
            plain = dtype.is_floating_point and dtype.itemsize >= torch.float16.itemsize
            if name in expected and expected[name].is_floating_point() and not plain:
                wrong.setdefault(str(dtype).removeprefix("torch."), []).append(stored)
        if wrong:
            found = "; ".join(f"{dtype}: {', '.join(names[:8])}" for dtype, names in wrong.items())
            count = sum(map(len, wrong.values()))
            raise ImportModelError(
                f"{source} holds {count} weights that are stored as {found}: expected floating-point weights, or a"
                " quantization_config in config.json that says how they are quantized; give the original model"
            )

    def names(self) -> set[str]:
        """Names of all weights; tensors for which the model has no place keep the names that they are stored by."""
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._shapes[name]

    def load(self, name: str) -> np.ndarray:
        """Read one weight; floats become float32."""
        if name in self._plain:
            return as_array(self._stored.read(self._plain[name]))
        return as_array(self._convert(self._converted[name], self._read_float)[name])

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Read `weight[index]`; of experts that are stored one by one, only this one is read."""
        if name in self._plain:
            return as_array(self._stored.read_index(self._plain[name], index))
        conversion = self._converted[name]
        if not _stacks(conversion.converter):
            return np.ascontiguousarray(self.load(name)[index])
        of_one = [
            [source for source in conversion.sources if source[0] == pattern][index]
            for pattern in dict.fromkeys(pattern for pattern, _ in conversion.sources)
        ]
        return as_array(self._convert(replace(conversion, sources=tuple(of_one)), self._read_float)[name][0])

    def reads_parts(self, name: str) -> bool:
        """Whether `load_index` leaves the rest of a weight unread."""
        if name in self._plain:
            return self._stored.reads_parts(self._plain[name])
        return _stacks(self._converted[name].converter)

    def _read_float(self, name: str) -> torch.Tensor:
        tensor = self._stored.read(name)
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor

    def _convert(self, conversion: _Conversion, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        converter = deepcopy(conversion.converter)
        for pattern, stored in conversion.sources:
            # A tensor serves where loading in the background has the promise of one.
            converter.add_tensor(conversion.target, stored, pattern, read(stored))  # type: ignore[arg-type]
        found = converter.convert(conversion.target, model=self._model, config=self._model.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in found.items()}


def _stacks(converter: WeightConverter) -> bool:
    """Whether slice e of what a converter makes depends on the e-th tensor of every pattern only."""
    first, *others = converter.operations
    return (
        isinstance(first, MergeModulelist)
        and first.dim == 0
        and all(type(each) is Concatenate and each.dim != 0 for each in others)
    )


def _ignored(model: PreTrainedModel) -> re.Pattern[str] | None:
    """Names of stored tensors that the model's own loading passes over: buffers that are computed nowadays."""
    patterns: Sequence[str] = sorted(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns = [*patterns, r"rotary_emb\.inv_freq"]
    if any(name.endswith("position_ids") for name in buffers):
        patterns = [*patterns, r"(^|\.)position_ids$"]
    return re.compile("|".join(f"({pattern})" for pattern in patterns)) if patterns else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().split(chr(10), 1)[0]}"
