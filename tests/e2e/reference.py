"""A transformers model that computes with what a compiled model holds: dequantized weights, quantized activations."""

import copy
import re

import torch
from transformers.pytorch_utils import Conv1D

from hwpq_tvm.schedules import registry


def weight_format(layer):
    """Packed format of a layer of a report."""
    sparsity, dtype, group = re.fullmatch(r"(\S+) (\S+?)(?: g(\d+))?", layer["scheme"]).groups()
    weight_only = any("weight_only" in kernel for kernel in layer["kernel"].values())
    return registry.weight_format(
        sparsity=sparsity, dtype=dtype, group_size=group and int(group), activations="float" if weight_only else "int8"
    )


def dequantized_weights(model):
    """Layer name -> dequantized weight `[N, K]` of every packed layer of a compiled model."""
    params, layers = model.params, {layer["name"]: layer for layer in model.report["layers"]}
    found = {}
    for name in params:
        group = name.removesuffix(".weight")
        parent, _, leaves = group.rpartition(".")
        members = [f"{parent}.{leaf}" if parent else leaf for leaf in leaves.split("+")]
        if not set(members) <= layers.keys():  # of several parents
            members = group.split("+")
        rows = {}
        for member in members if group != name else []:
            if member not in layers or not weight_format(layers[member]).packs:
                continue
            known, (n, k) = weight_format(layers[member]), layers[member]["shape"]
            parts = {}
            for part, (shape, _) in known.packed(n, k).items():
                first = rows.get(part, 0)
                rows[part] = first + shape[0]
                parts[part] = params[f"{group}.{part}"][first : rows[part]]
            found[member] = known.dequantize(parts, n, k)
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
    layers = {layer["name"]: layer for layer in model.report["layers"]}
    for name, weight in dequantized_weights(model).items():
        stored = modules[name].weight
        with torch.no_grad():
            weight = weight.T if isinstance(modules[name], Conv1D) else weight
            stored.copy_(torch.from_numpy(weight).reshape(stored.shape))
        if not quantize_activations or weight_format(layers[name]).activation_dtype != "int8":
            continue
        # A table that is tied to the output projection is named after the embedding.
        users = [m for m in modules.values() if getattr(m, "weight", None) is stored]
        for module in users:
            if isinstance(module, torch.nn.Linear | Conv1D):
                module.register_forward_pre_hook(lambda _, inputs: (fake_quantized(inputs[0]),))
            elif isinstance(module, torch.nn.Conv2d):
                module.register_forward_pre_hook(lambda _, inputs: (_of_channels(inputs[0]),))
    return result


def _of_channels(x):
    """Round the activations of a 1x1 convolution to int8, per place."""
    return fake_quantized(x.movedim(1, -1)).movedim(-1, 1)
