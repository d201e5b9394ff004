"""A transformers model that computes with what a compiled model holds: dequantized weights, quantized activations."""

import copy

import numpy as np
import torch

from hwpq_tvm.schedules.layouts.tiles import ROWS


def unpacked(weight_format, packed, scale, N, K):
    """Dequantized `[N, K]` of a packed weight: the layouts' descriptions read with array operations."""
    blocks, steps = packed.shape[:2]
    if weight_format == "dense int8":
        # [block, step, vector, row, column of 4] -> [row, step, vector, column]
        dense = packed.reshape(blocks, steps, 16, ROWS, 4).transpose(0, 3, 1, 2, 4)
    else:
        # [block, step, vector, row, group of 2, element of 2]
        values = packed[:, :, :8].reshape(blocks, steps, 8, ROWS, 2, 2)
        metadata = packed[:, :, 8:].view(np.uint8).reshape(blocks, steps, 2, 1, ROWS, 2, 2)
        shifts = 2 * np.arange(4, dtype=np.uint8).reshape(1, 1, 1, 4, 1, 1, 1)
        indices = ((metadata >> shifts) & 3).reshape(values.shape)
        dense = np.zeros((blocks, steps, 8, ROWS, 2, 4), np.int8)
        np.put_along_axis(dense, indices.astype(np.int64), values, axis=-1)
        dense = dense.transpose(0, 3, 1, 2, 4, 5)
    rows = dense.reshape(blocks * ROWS, -1).astype(np.float32) * scale[:, None]
    return rows[:N, :K]


def dequantized_weights(model):
    """Layer name -> dequantized weight `[N, K]` of every packed layer of a compiled model."""
    params, shapes = model.params, {layer["name"]: layer for layer in model.report["layers"]}
    found = {}
    for name, packed in params.items():
        if packed.dtype != np.int8:
            continue
        group = name.removesuffix(".weight")
        parent, _, leaves = group.rpartition(".")
        scale, row = params[group + ".scale"], 0
        for leaf in leaves.split("+"):
            layer = shapes[f"{parent}.{leaf}" if parent else leaf]
            n, k = layer["shape"]
            end = row + -(-n // ROWS) * ROWS
            part = packed[row // ROWS : end // ROWS]
            found[layer["name"]] = unpacked(layer["scheme"], part, scale[row:end], n, k)
            row = end
    return found


def fake_quantized(x):
    """Round activations to int8 per token and back: `max|x| / 127`, half to even."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.clamp(torch.round(x / scale), -127, 127) * scale


def reference_model(model, hf, *, quantize_activations=True):
    """A copy of `hf` with the weights of a compiled model, and activations quantized where its kernels do."""
    result = copy.deepcopy(hf)
    modules = dict(result.named_modules())
    for name, weight in dequantized_weights(model).items():
        with torch.no_grad():
            modules[name].weight.copy_(torch.from_numpy(weight))
        # A table that is tied to the output projection is named after the embedding.
        users = [m for m in modules.values() if getattr(m, "weight", None) is modules[name].weight]
        for module in users:
            if quantize_activations and isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: (fake_quantized(inputs[0]),))
    return result
