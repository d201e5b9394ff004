"""Checkpoints whose weights are quantized already: the formats that are read, and what to do about the others.

What is read is dequantized one tensor at a time, whenever it is asked for. How a weight is stored is told from its
tensors, by the names and shapes that each format gives them; the configuration says only which format it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import compressed_tensors_format, gptq_format
from hwpq_tvm.importers.packed_weights import PackedWeights
from hwpq_tvm.importers.sources import StoredTensors

Reader = Callable[[StoredTensors, Mapping[str, Any]], PackedWeights]

# `quant_method` of a configuration -> what finds the weights.
_READERS: dict[str, Reader] = {
    "gptq": gptq_format.find_gptq,
    "awq": gptq_format.find_awq,
    "fp8": compressed_tensors_format.find_fp8,
    "compressed-tensors": compressed_tensors_format.find_compressed_tensors,
}

# What else to do, for those that transformers itself can turn into floats.
_WAYS_OUT = {
    "bitsandbytes": "load it, call its dequantize() and save_pretrained(), and give that folder",
    "mxfp4": "load it with quantization_config=Mxfp4Config(dequantize=True), save_pretrained() it and give that folder",
    "hqq": "load it, call its dequantize() and save_pretrained(), and give that folder",
}
_ORIGINAL = "give the original model, from before it was quantized"


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a `config.json` says of how its weights are quantized; None if they are plain."""
    found = config.get("quantization_config") or config.get("compression_config")
    return found if isinstance(found, Mapping) else None


def dequantized(
    stored: StoredTensors, quantization: Mapping[str, Any], *, source: str
) -> tuple[StoredTensors, str, tuple[str, ...]]:
    """Read the tensors of a quantized checkpoint as the floats that they stand for.

    Parameters
    ----------
    stored
        The tensors as they are stored.
    quantization
        What the configuration says of them.
    source
        The checkpoint's name for messages.

    Returns
    -------
    The tensors with floats in place of what is quantized, by the names that the float model has; the name of the
    format; and sentences for the report.

    Raises
    ------
    ImportModelError
        When nothing is known of the format, or its tensors are not as it says, naming all of them.
    """
    method = _method(quantization)
    if method not in _READERS:
        raise ImportModelError(f"{source} holds weights that are quantized already ({method}): {_advice(method)}")
    try:
        found = _READERS[method](stored, quantization)
    except ImportModelError as error:
        raise ImportModelError(
            f"{source} holds weights that are quantized already ({method}), in a way that can't be read: {error};"
            f" {_ORIGINAL}"
        ) from error
    return found, found.format, found.notes


def refuse_quantized(model: PreTrainedModel) -> None:
    """Raise ImportModelError for a live model whose weights are quantized: their values are the library's own."""
    quantizer = getattr(model, "hf_quantizer", None)
    wrong = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.is_floating_point() or parameter.dtype.itemsize < torch.float16.itemsize
    ]
    if quantizer is None and not wrong:
        return
    config = getattr(quantizer, "quantization_config", None)
    method = getattr(config, "quant_method", "unknown method")
    method = str(getattr(method, "value", method)).replace("_", "-") if config is not None else str(method)
    where = f" ({', '.join(wrong[:3])})" if wrong else ""
    folder = ", or give its folder, which can be read" if method in _READERS else ""
    raise ImportModelError(
        f"{type(model).__name__} is quantized already ({method}){where}: expected floating-point weights;"
        f" {_advice(method)}{folder}"
    )


def _method(quantization: Mapping[str, Any]) -> str:
    method = str(quantization.get("quant_method") or "unknown method")
    # Older files of compressed-tensors name their own format only.
    if "config_groups" in quantization or "sparsity_config" in quantization or method == "compressed_tensors":
        return "compressed-tensors"
    return method


def _advice(method: str) -> str:
    readable = ", ".join(_READERS)
    return f"can be read are {readable}; {_WAYS_OUT.get(method, _ORIGINAL)}"
