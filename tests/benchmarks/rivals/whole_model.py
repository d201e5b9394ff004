"""Rivals applied to every linear of the decoder layers of a transformers model, one decoder layer after the other."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Rival = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(weight [N, K], gram [K, K]) -> compressed weight [N, K]."""


@dataclass
class Compressed:
    """What a rival made of a model, and how long it took.

    Attributes
    ----------
    weights
        Layer name -> compressed weight.
    seconds
        Time in the rival alone: without running the model and gathering Gram matrices.
    calibration_seconds
        That time, which all rivals of one call share.
    """

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    calibration_seconds: float = 0.0


def compress_model(
    model: torch.nn.Module, windows: Sequence[torch.Tensor], rivals: Mapping[str, Rival], *, sequential: bool = False
) -> dict[str, Compressed]:
    """Compress copies of the weights of a model; the model itself is as it was afterwards.

    Parameters
    ----------
    model
        A transformers causal language model of the Llama kind (`model.model.layers`).
    windows
        Token ids of each calibration window.
    rivals
        Name -> function. With `sequential` there can be only one.
    sequential
        Whether each decoder layer is calibrated on what the compressed ones before it hand on, as SparseGPT and GPTQ
        were published; otherwise all see the inputs of the float model.
    """
    assert len(rivals) == 1 or not sequential, "every rival has a sequence of its own"
    results = {name: Compressed() for name in rivals}
    start = time.perf_counter()
    states, arguments = _inputs_of_first_layer(model, windows)
    calibration = time.perf_counter() - start
    layers = model.model.layers
    for index, layer in enumerate(layers):
        start = time.perf_counter()
        grams, outputs = _grams(layer, states, arguments)
        calibration += time.perf_counter() - start
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
        originals = {name: linear.weight.data for name, linear in linears.items()}
        for name, rival in rivals.items():
            start = time.perf_counter()
            made = {linear: rival(weight, grams[linear]) for linear, weight in originals.items()}
            results[name].seconds += time.perf_counter() - start
            results[name].weights |= {f"model.layers.{index}.{linear}": weight for linear, weight in made.items()}
        if sequential:
            start = time.perf_counter()
            for name, linear in linears.items():
                linear.weight.data = made[name]
            outputs = [_run(layer, *call) for call in zip(states, arguments, strict=True)]
            for name, linear in linears.items():
                linear.weight.data = originals[name]
            calibration += time.perf_counter() - start
        states = outputs
    for result in results.values():
        result.calibration_seconds = calibration
    return results


class _Stop(Exception):
    """Ends a forward pass whose rest is not needed."""


def _inputs_of_first_layer(
    model: torch.nn.Module, windows: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[dict[str, object]]]:
    """What the decoder layers are called with, for each window: the hidden states of the first, and the rest."""
    states: list[torch.Tensor] = []
    arguments: list[dict[str, object]] = []

    def hook(_: object, positional: tuple[torch.Tensor, ...], named: dict[str, object]) -> None:
        states.append(positional[0])
        arguments.append(named)
        raise _Stop

    handle = model.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True)
    for window in windows:
        try:
            model.model(window[None], use_cache=False)
        except _Stop:
            continue
    handle.remove()
    return states, arguments


def _run(layer: torch.nn.Module, state: torch.Tensor, rest: Mapping[str, object]) -> torch.Tensor:
    output = layer(state, **rest)
    return output[0] if isinstance(output, tuple) else output


def _grams(
    layer: torch.nn.Module, states: Sequence[torch.Tensor], arguments: Sequence[Mapping[str, object]]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Gram matrix of the input of every linear of a layer (linears on one input share one), and its outputs."""
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    totals: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    outputs = []
    for state, rest in zip(states, arguments, strict=True):
        outputs.append(_run(layer, state, rest))
        for name, seen in inputs.items():
            shared.setdefault(name, next(other for other, x in inputs.items() if x is seen))
            if shared[name] == name:
                rows = seen.flatten(0, -2)
                product = rows.T @ rows
                totals[name] = totals[name] + product if name in totals else product
    for handle in handles:
        handle.remove()
    return {name: totals[shared[name]] for name in inputs}, outputs
