"""Parameters that a checkpoint may lack, since the model computes them when it is made: tables of sinusoids."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedModel


def computed_weights(model: PreTrainedModel, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Compute the parameters that a model fills with the same values whenever it is made.

    Parameters
    ----------
    model
        The model; its parameters may be on the meta device.
    names
        Parameters that have no value.

    Returns
    -------
    Values of those that are not filled at random, nor left as they were.
    """
    found = {}
    for name in names:
        first, second = (_filled(model, name, seed) for seed in (0, 1))
        # What was left as it was is NaN, which equals nothing.
        if torch.equal(first, second):
            found[name] = first
    return found


def _filled(model: PreTrainedModel, name: str, seed: int) -> torch.Tensor:
    """One parameter as it is after initialisation of a copy of the module that has it."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    memo: dict[int, Any] = {
        id(parameter): torch.nn.Parameter(torch.full(parameter.shape, torch.nan), requires_grad=False)
        for parameter in module.parameters(recurse=False)
    }
    copy = deepcopy(module, memo)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model._init_weights(copy)
    return copy.get_parameter(leaf).detach()
