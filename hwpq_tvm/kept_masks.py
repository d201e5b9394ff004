"""Weights that come pruned: where a checkpoint satisfies the asked sparsity already, its masks stay as they are.

Selection ranks exact zeros below everything, so it keeps such a mask by itself, by whatever metric; adjusting what is
kept would have nothing to make up for. So these layers are taken out of reconstruction, and its calibration.
"""

from dataclasses import replace

import numpy as np

from .importers import ParameterSource
from .importers.imported_model import IndexedSource
from .relax_passes.plan import LinearPlan, Plan


def keep_masks(plan: Plan, parameters: ParameterSource) -> Plan:
    """Leave out the reconstruction of layers whose weights are as sparse as they are asked to be.

    Parameters
    ----------
    plan
        Schemes of all layers.
    parameters
        The weights. Of a layer whose first row is dense no more than that row is read, where the source can read a row
        alone; what has to be put together as a whole (other layouts, packed checkpoints) is read once.

    Returns
    -------
    Plan
        The same, with `reconstruct="none"` for layers that satisfy their N:M sparsity.
    """
    kept = {
        linear.weight: replace(linear, scheme=replace(linear.scheme, reconstruct="none"))
        for linear in plan.linears
        if linear.needs_gram and linear.scheme.kept_of_group and _is_pruned(linear, parameters)
    }
    if not kept:
        return plan
    groups = tuple(
        replace(group, members=tuple(kept.get(member.weight, member) for member in group.members))
        for group in plan.groups
    )
    return replace(plan, groups=groups)


def _is_pruned(linear: LinearPlan, parameters: ParameterSource) -> bool:
    assert linear.scheme.kept_of_group is not None
    n, m = linear.scheme.kept_of_group
    name = linear.weight
    if (
        isinstance(parameters, IndexedSource)
        and parameters.reads_parts(name)
        and not satisfies(parameters.load_index(name, 0)[None], n, m)
    ):
        return False
    weight = parameters.load(name)
    # One row is quick to look at.
    return satisfies(weight[:1], n, m) and satisfies(weight, n, m)


def satisfies(weight: np.ndarray, n: int, m: int) -> bool:
    """Whether at most n of every m consecutive weights of a row are not zero; of a last group that is short, n too."""
    rows, columns = weight.shape
    padded = np.pad(weight != 0, ((0, 0), (0, -columns % m))) if columns % m else weight != 0
    return bool((np.count_nonzero(padded.reshape(rows, -1, m), axis=-1) <= n).all())
