"""Weights that are stored as several tensors each: put together when they are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hwpq_tvm.importers.sources import StoredTensors

Parts = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """How one weight is put together.

    Attributes
    ----------
    shape
        Of the weight.
    parts
        Stored name of each of its parts.
    decode
        Makes the float32 weight of its parts.
    stacked
        Whether slice e of the weight depends on slice e of each part only.
    """

    shape: tuple[int, ...]
    parts: Mapping[str, str]
    decode: Callable[[Parts], torch.Tensor]
    stacked: bool = False


class PackedWeights:
    """Stored tensors among which some are parts of weights.

    Parameters
    ----------
    stored
        The tensors.
    weights
        The weights that are in parts, by name.
    unused
        Names of tensors that are needed for nothing.
    format
        What the weights are stored as, for the report.
    notes
        Sentences for the report.
    """

    def __init__(
        self,
        stored: StoredTensors,
        weights: Mapping[str, PackedWeight],
        unused: set[str],
        *,
        format: str,
        notes: tuple[str, ...],
    ) -> None:
        self._stored, self._weights = stored, weights
        self.format, self.notes = format, notes
        parts = {part for weight in weights.values() for part in weight.parts.values()}
        self._names = (stored.names() - parts - unused) | weights.keys()

    @property
    def nbytes(self) -> int:
        """Size of what is stored."""
        return self._stored.nbytes

    def names(self) -> set[str]:
        """Names of all weights and of the tensors that stand for themselves."""
        return set(self._names)

    def meta(self, name: str) -> torch.Tensor:
        """Shape and type of a tensor, as a tensor on the meta device."""
        if name in self._weights:
            return torch.empty(self._weights[name].shape, dtype=torch.float32, device="meta")
        return self._stored.meta(name)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, and put it together."""
        if name not in self._weights:
            return self._stored.read(name)
        weight = self._weights[name]
        return weight.decode({part: self._stored.read(stored) for part, stored in weight.parts.items()})

    def read_index(self, name: str, index: int) -> torch.Tensor:
        """Read `tensor[index]`."""
        if name not in self._weights:
            return self._stored.read_index(name, index)
        weight = self._weights[name]
        if not weight.stacked:
            return self.read(name)[index]
        return weight.decode({part: self._stored.read_index(stored, index) for part, stored in weight.parts.items()})

    def reads_parts(self, name: str) -> bool:
        """Whether `read_index` leaves the rest of a tensor unread; of a matrix in parts, all rows are put together."""
        return self._weights[name].stacked if name in self._weights else self._stored.reads_parts(name)


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Unpack unsigned numbers that lie without gaps in 32-bit words along the first axis, lowest bits first.

    Parameters
    ----------
    words
        `[ceil(count * bits / 32), ...]` int32.
    bits
        Of each number, 1 to 8.
    count
        How many numbers there are.

    Returns
    -------
    `[count, ...]` uint8.
    """
    periods = -(-count // 32)
    numbers = torch.empty((periods * 32, *words.shape[1:]), dtype=torch.uint8)
    whole = words.new_zeros((periods * bits, *words.shape[1:]))
    whole[: min(len(words), len(whole))] = words[: len(whole)]
    for phase in range(32):
        word, shift = divmod(phase * bits, 32)
        # Shifting right an int32 repeats its sign, which the mask removes.
        value = whole[word::bits] >> shift
        if shift + bits > 32:
            low = 32 - shift
            value = (value & ((1 << low) - 1)) | (whole[word + 1 :: bits] << low)
        numbers[phase::32] = (value & ((1 << bits) - 1)).to(torch.uint8)
    return numbers[:count]
