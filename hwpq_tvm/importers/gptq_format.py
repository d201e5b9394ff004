"""GPTQ and AWQ checkpoints: integers in 32-bit words, `[in_features, out_features]`, with scales per group of inputs.

The layouts are those of AutoGPTQ (https://github.com/AutoGPTQ/AutoGPTQ, qlinear_cuda_old.py) and AutoAWQ
(https://github.com/casper-hansen/AutoAWQ, packing_utils.py). With G groups of in_features:

=========  ===========================  ===========================
tensor     GPTQ                         AWQ
=========  ===========================  ===========================
qweight    [K * bits / 32, N]           [K, N / 8], 4 bits
qzeros     [G, N * bits / 32]           [G, N / 8]
scales     [G, N]                       [G, N]
g_idx      [K], group of each input     (none)
=========  ===========================  ===========================
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.packed_weights import PackedWeight, PackedWeights, Parts, unpack_words
from hwpq_tvm.importers.sources import StoredTensors

_QWEIGHT = ".qweight"
_PARTS = ("qweight", "qzeros", "scales")
# Column of each nibble of a word, lowest first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def find_gptq(stored: StoredTensors, quantization: Mapping[str, Any]) -> PackedWeights:
    """Find the weights of a GPTQ checkpoint.

    Parameters
    ----------
    stored
        The tensors.
    quantization
        Its `quantization_config`, of which `checkpoint_format` counts: "gptq" stores zero points less 1, "gptq_v2"
        stores them as they are. Bits are told from shapes, since layers may differ.

    Raises
    ------
    ImportModelError
        Naming all layers whose tensors are not as the format says.
    """
    layout = str(quantization.get("checkpoint_format") or "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise ImportModelError(f"checkpoint_format is {layout!r}, expected 'gptq' or 'gptq_v2'")
    return _find(stored, partial(_gptq_layer, offset=1 if layout == "gptq" else 0), "gptq")


def find_awq(stored: StoredTensors, quantization: Mapping[str, Any]) -> PackedWeights:
    """Find the weights of an AWQ checkpoint of version "gemm"; parameters and errors are those of `find_gptq`."""
    version = str(quantization.get("version") or "gemm").lower()
    if version != "gemm":
        raise ImportModelError(f"version is {version!r}, expected 'gemm'")
    return _find(stored, _awq_layer, "awq")


def _find(
    stored: StoredTensors, layer: Callable[[Mapping[str, torch.Tensor], str], tuple[int, PackedWeight]], method: str
) -> PackedWeights:
    names = stored.names()
    weights, problems, seen = {}, [], set()
    for name in sorted(name for name in names if name.endswith(_QWEIGHT)):
        path = name.removesuffix(_QWEIGHT)
        if missing := [part for part in _PARTS if f"{path}.{part}" not in names]:
            problems.append(f"{path} lacks {', '.join(missing)}")
            continue
        parts = [part for part in (*_PARTS, "g_idx") if f"{path}.{part}" in names]
        try:
            bits, weight = layer({part: stored.meta(f"{path}.{part}") for part in parts}, path)
        except ImportModelError as error:
            problems.append(str(error))
            continue
        seen.add(bits)
        weights[f"{path}.weight"] = weight
    if problems:
        raise ImportModelError("; ".join(problems))
    if not weights:
        raise ImportModelError(f"there is no tensor named *{_QWEIGHT}")
    widths = " and ".join(str(bits) for bits in sorted(seen))
    note = (
        f"{len(weights)} weights were stored as {method} in {widths} bits: they are dequantized as they are read, and"
        " what is done to them here comes on top"
    )
    return PackedWeights(stored, weights, set(), format=f"{method} {widths} bit", notes=(note,))


def _gptq_layer(parts: Mapping[str, torch.Tensor], path: str, *, offset: int) -> tuple[int, PackedWeight]:
    rows, n = parts["qweight"].shape
    groups, columns = parts["qzeros"].shape
    bits = columns * 32 // n
    k = rows * 32 // bits if bits else 0
    fits = bits in (2, 3, 4, 8) and rows * 32 == k * bits and tuple(parts["scales"].shape) == (groups, n)
    if not fits or (k % groups and "g_idx" not in parts):
        raise _shapes(parts, path)
    names = {part: f"{path}.{part}" for part in parts}
    return bits, PackedWeight((n, k), names, partial(_decode_gptq, bits=bits, n=n, k=k, offset=offset))


def _decode_gptq(parts: Parts, *, bits: int, n: int, k: int, offset: int) -> torch.Tensor:
    zeros = unpack_words(parts["qzeros"].T.contiguous(), bits, n).T
    zeros = (zeros + offset) & ((1 << bits) - 1)
    group = parts["g_idx"].long() if "g_idx" in parts else _groups(k, len(zeros))
    weight = unpack_words(parts["qweight"], bits, k).to(torch.float32)
    return (weight.sub_(zeros.float()[group]).mul_(parts["scales"].float()[group])).T


def _awq_layer(parts: Mapping[str, torch.Tensor], path: str) -> tuple[int, PackedWeight]:
    k, words = parts["qweight"].shape
    n, groups = words * 8, len(parts["scales"])
    shapes = [tuple(parts[part].shape) for part in ("qzeros", "scales")]
    if shapes != [(groups, words), (groups, n)] or k % groups:
        raise _shapes(parts, path)
    names = {part: f"{path}.{part}" for part in _PARTS}
    return 4, PackedWeight((n, k), names, partial(_decode_awq, n=n, k=k))


def _decode_awq(parts: Parts, *, n: int, k: int) -> torch.Tensor:
    def columns(words: torch.Tensor) -> torch.Tensor:
        """`[rows, N / 8]` words -> `[rows, N]` numbers."""
        nibbles = unpack_words(words.T.contiguous(), 4, n).reshape(-1, 8, len(words))
        ordered = torch.empty_like(nibbles)
        ordered[:, list(_AWQ_ORDER)] = nibbles
        return ordered.reshape(n, -1).T

    group = _groups(k, len(parts["scales"]))
    weight = columns(parts["qweight"]).to(torch.float32)
    zeros = columns(parts["qzeros"]).float()
    return (weight.sub_(zeros[group]).mul_(parts["scales"].float()[group])).T


def _groups(k: int, groups: int) -> torch.Tensor:
    return torch.arange(k) // (k // groups)


def _shapes(parts: Mapping[str, torch.Tensor], path: str) -> ImportModelError:
    found = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items())
    return ImportModelError(f"the shapes of {path} do not fit together ({found})")
