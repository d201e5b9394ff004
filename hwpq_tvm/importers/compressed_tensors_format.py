"""Checkpoints of compressed-tensors, and fp8 weights with scales by block: integers or small floats, and their scales.

The layouts are those of https://github.com/neuralmagic/compressed-tensors (`compressors/`), and of transformers'
`finegrained_fp8` for weights named `weight_scale_inv`. A weight `[N, K]` is stored as one of

===============  ======================================================================================
weight           integers or float8, of the weight's shape
weight_packed    integers of 1 to 8 bits in 32-bit words along K, with `weight_shape`
compressed       what is not zero, with one bit per weight in `bitmask` and the weight's `shape`
===============  ======================================================================================

with `weight_scale` (of one element, or `[N, 1]`, or `[N, groups]`, or by blocks), `weight_zero_point` and the group of
each input in `weight_g_idx`.
"""

import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.packed_weights import PackedWeight, PackedWeights, Parts, unpack_words
from hwpq_tvm.importers.sources import StoredTensors

# Names that tell of activations and of the KV cache, at the end of a tensor's name: both are quantized anew here.
_OF_ACTIVATIONS = (
    *(f".{what}_{kind}" for what in ("input", "output") for kind in ("scale", "zero_point", "global_scale", "g_idx")),
    *(f".{what}_{kind}" for what in "qkv" for kind in ("scale", "zero_point")),
    ".activation_scale",
)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
Block = tuple[int, int] | None


def find_fp8(stored: StoredTensors, quantization: Mapping[str, Any]) -> PackedWeights:
    """Find float8 weights with a `*_scale_inv` each: a factor per block of `weight_block_size`, or one for all.

    Raises
    ------
    ImportModelError
        Naming all weights whose tensors are not as the format says.
    """
    size = quantization.get("weight_block_size")
    block: Block = (int(size[0]), int(size[1])) if size else None
    names = stored.names()
    weights, problems = {}, []
    for scale in sorted(name for name in names if name.endswith("_scale_inv")):
        name = scale.removesuffix("_scale_inv")
        try:
            weights[name] = _plain(stored, name, {"scale": scale}, block)
        except ImportModelError as error:
            problems.append(str(error))
    alone = [name for name in names - weights.keys() if stored.meta(name).dtype in _FLOAT8]
    problems += [f"{name} has no {name}_scale_inv" for name in sorted(alone) if f"{name}_scale_inv" not in names]
    return _result(stored, weights, problems, "fp8")


def find_compressed_tensors(stored: StoredTensors, quantization: Mapping[str, Any]) -> PackedWeights:
    """Find the weights of a compressed-tensors checkpoint.

    Parameters
    ----------
    stored
        The tensors.
    quantization
        Its `quantization_config`: `config_groups` say how many bits there can be, and the sizes of blocks.

    Raises
    ------
    ImportModelError
        Naming all weights whose tensors are not as the format says.
    """
    if quantization.get("transform_config"):
        raise ImportModelError("its activations are transformed as well (transform_config)")
    schemes = _weight_schemes(quantization)
    bits = {int(each["num_bits"]) for each in schemes if "num_bits" in each}
    blocks = {tuple(each["block_structure"]) for each in schemes if each.get("block_structure")}
    block: Block = blocks.pop() if len(blocks) == 1 else None
    names = stored.names()
    weights: dict[str, PackedWeight] = {}
    problems: list[str] = []
    scales_alone: dict[str, set[str]] = {}
    for name in sorted(names):
        path, _, part = name.rpartition(".")
        try:
            if part == "compressed":
                path = path.removesuffix(".weight")
                weights[f"{path}.weight"] = _sparse(stored, name, path, block)
            elif part == "weight_packed":
                weights[f"{path}.weight"] = _packed(stored, path, bits)
            elif part == "weight_scale" and f"{path}.weight" in names:
                extra = _scales(names, path)
                if stored.meta(f"{path}.weight").dtype in (*_FLOAT8, torch.int8):
                    weights[f"{path}.weight"] = _plain(stored, f"{path}.weight", extra, block)
                else:
                    # Quantized and brought back to floats before it was saved: the scale was applied.
                    scales_alone[path] = set(extra.values())
        except ImportModelError as error:
            problems.append(str(error))
    return _result(stored, weights, problems, "compressed-tensors", scales_alone)


def _weight_schemes(quantization: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What each group of layers says of its weights."""
    groups = quantization.get("config_groups") or {}
    if named := [name for name, group in groups.items() if not isinstance(group, Mapping)]:
        raise ImportModelError(
            f"config_groups names schemes without saying what they are ({', '.join(named)}): expected each group to"
            " have its 'weights'"
        )
    return [group.get("weights") or {} for group in groups.values()]


def _result(
    stored: StoredTensors,
    weights: Mapping[str, PackedWeight],
    problems: list[str],
    method: str,
    scales_alone: Mapping[str, set[str]] | None = None,
) -> PackedWeights:
    if problems:
        raise ImportModelError("; ".join(problems))
    kinds: Counter[str] = Counter()
    for weight in weights.values():
        values = stored.meta(weight.parts["values"]).dtype
        kinds[f"{'sparse ' if 'bitmask' in weight.parts else ''}{str(values).removeprefix('torch.')}"] += 1
    notes = []
    if weights:
        stored_as = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        notes.append(
            f"{len(weights)} weights were stored as {method} ({stored_as}): they are dequantized as they are read, and"
            " what is done to them here comes on top"
        )
    of_activations = {name for name in stored.names() if name.endswith(_OF_ACTIVATIONS)}
    if of_activations:
        notes.append(
            f"{len(of_activations)} scales of activations in the checkpoint are left out: what is quantized at run time"
            " is measured at run time"
        )
    if scales_alone:
        notes.append(
            f"{len(scales_alone)} weights were stored as floats beside their scales: they are read as they are, and the"
            " scales are left out"
        )
    unused = of_activations.union(*(scales_alone or {}).values())
    return PackedWeights(stored, weights, unused, format=method, notes=tuple(notes))


def _scales(names: set[str], path: str) -> dict[str, str]:
    parts = {"scale": "weight_scale", "zero_point": "weight_zero_point", "g_idx": "weight_g_idx"}
    return {part: f"{path}.{name}" for part, name in parts.items() if f"{path}.{name}" in names}


def _plain(stored: StoredTensors, name: str, scales: Mapping[str, str], block: Block) -> PackedWeight:
    """A weight of one number per element; three dimensions are a stack of such."""
    if name not in stored.names():
        raise ImportModelError(f"{name} is not there, but {scales['scale']} is")
    values = stored.meta(name)
    shape = tuple(values.shape)
    parts = {"values": name, **scales}
    _check_scales(stored, parts, shape, block)
    return PackedWeight(shape, parts, partial(_decode_plain, block=block), stacked=values.ndim == 3)


def _decode_plain(parts: Parts, *, block: Block) -> torch.Tensor:
    return _scaled(parts["values"].to(torch.float32), parts, block)


def _packed(stored: StoredTensors, path: str, known_bits: set[int]) -> PackedWeight:
    """A weight whose integers lie in 32-bit words."""
    names = stored.names()
    words = stored.meta(f"{path}.weight_packed")
    if words.dtype != torch.int32 or f"{path}.weight_shape" not in names:
        raise ImportModelError(f"{path}.weight_packed is {words.dtype}, expected int32 words and a weight_shape")
    n, k = (int(size) for size in stored.read(f"{path}.weight_shape"))
    fitting = [bits for bits in sorted(known_bits) if tuple(words.shape) == (n, math.ceil(k * bits / 32))]
    if len(fitting) != 1:
        raise ImportModelError(
            f"{path}.weight_packed is {list(words.shape)} for a weight [{n}, {k}]: expected one width to fit, of the"
            f" {sorted(known_bits)} bits that the configuration names, found {fitting}"
        )
    scales = _scales(names, path)
    parts = {"values": f"{path}.weight_packed", **scales}
    # Its value is known from here on.
    parts["shape"] = f"{path}.weight_shape"
    if "scale" not in parts:
        raise ImportModelError(f"{path} lacks weight_scale")
    groups = tuple(stored.meta(parts["scale"]).shape)
    packed_zeros = "zero_point" in parts and stored.meta(parts["zero_point"]).dtype == torch.int32
    _check_scales(stored, {part: name for part, name in parts.items() if part != "zero_point"}, (n, k), None)
    decode = partial(_decode_packed, bits=fitting[0], n=n, k=k, groups=groups[-1], packed_zeros=packed_zeros)
    return PackedWeight((n, k), parts, decode)


def _decode_packed(parts: Parts, *, bits: int, n: int, k: int, groups: int, packed_zeros: bool) -> torch.Tensor:
    half = 1 << (bits - 1)
    values = unpack_words(parts["values"].T.contiguous(), bits, k).T.to(torch.float32) - half
    scales = dict(parts)
    if packed_zeros:
        scales["zero_point"] = unpack_words(parts["zero_point"], bits, n).reshape(n, groups).to(torch.float32) - half
    return _scaled(values, scales, None)


def _sparse(stored: StoredTensors, name: str, path: str, block: Block) -> PackedWeight:
    """A weight of which only what is not zero is stored, and maybe quantized."""
    names = stored.names()
    stem = name.removesuffix(".compressed")
    parts = {"values": name, "bitmask": f"{stem}.bitmask", "shape": f"{stem}.shape"}
    if missing := [part for part, stored_name in parts.items() if stored_name not in names]:
        raise ImportModelError(f"{stem} lacks {', '.join(missing)}")
    if f"{stem}.row_offsets" in names:
        parts["row_offsets"] = f"{stem}.row_offsets"
    n, k = (int(size) for size in stored.read(parts["shape"]))
    mask = stored.meta(parts["bitmask"])
    if mask.dtype != torch.uint8 or mask.numel() != n * math.ceil(k / 8):
        raise ImportModelError(f"{stem}.bitmask is {list(mask.shape)} {mask.dtype}, expected bits for [{n}, {k}]")
    scales = _scales(names, path)
    if scales:
        _check_scales(stored, scales, (n, k), block)
    return PackedWeight((n, k), {**parts, **scales}, partial(_decode_sparse, n=n, k=k, block=block))


def _decode_sparse(parts: Parts, *, n: int, k: int, block: Block) -> torch.Tensor:
    bits = parts["bitmask"].reshape(n, -1, 1) >> torch.arange(8, dtype=torch.uint8)
    mask = (bits & 1).bool().reshape(n, -1)[:, :k]
    values = parts["values"].to(torch.float32).flatten()
    if int(mask.sum()) != len(values):
        raise ImportModelError(
            f"a sparse weight [{n}, {k}] has {len(values)} values for {int(mask.sum())} bits: the checkpoint is damaged"
        )
    weight = torch.zeros(n, k)
    weight[mask] = values
    return _scaled(weight, parts, block) if "scale" in parts else weight


def _check_scales(stored: StoredTensors, parts: Mapping[str, str], shape: tuple[int, ...], block: Block) -> None:
    scale = stored.meta(parts["scale"])
    if "g_idx" in parts or scale.numel() == 1:
        return
    for axis, (have, need) in enumerate(zip(scale.shape[-2:], shape[-2:], strict=False)):
        if _elements_per_scale(have, need, axis, block) is None:
            raise ImportModelError(f"{parts['scale']} is {list(scale.shape)}, which fits no groups of {list(shape)}")


def _scaled(values: torch.Tensor, parts: Parts, block: Block) -> torch.Tensor:
    """`(values - zero_point) * scale`, where one of both may stand for a group of inputs or a block."""
    scale = parts["scale"]
    # Exponents alone (e8m0) may be stored as bytes.
    factor = (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()
    if (zero := parts.get("zero_point")) is not None:
        values = values.sub_(_expanded(zero.float(), values.shape, parts.get("g_idx"), block))
    return values.mul_(_expanded(factor, values.shape, parts.get("g_idx"), block))


def _expanded(scale: torch.Tensor, shape: torch.Size, g_idx: torch.Tensor | None, block: Block) -> torch.Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim == 1:
        scale = scale[:, None]
    if g_idx is not None and scale.shape[1] > 1:
        return scale[:, g_idx.long()]
    for axis in range(2):
        dim = axis - 2
        times = _elements_per_scale(scale.shape[dim], shape[dim], axis, block)
        assert times is not None
        if scale.shape[dim] > 1 and times > 1:
            scale = scale.repeat_interleave(times, dim=dim).narrow(dim, 0, shape[dim])
    return scale


def _elements_per_scale(have: int, need: int, axis: int, block: Block) -> int | None:
    """How many of `need` elements share one of `have` scales, of which the last may stand for fewer; None: no fit."""
    if block is not None and have == math.ceil(need / block[axis]):
        return block[axis]
    return need // have if need % have == 0 else None
