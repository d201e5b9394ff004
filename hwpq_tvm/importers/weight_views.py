"""Weights of linear layers that are found in other parameters: transposed, with more axes, or stacked."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hwpq_tvm.importers.imported_model import ImportedModel, IndexedSource, ParameterSource
from hwpq_tvm.relax_passes.linear_form import WeightView, linear_form


class ViewedParameters:
    """The weights of a model, some of which are views of those that a source has.

    Parameters
    ----------
    source
        Where the weights are read.
    views
        Name of each view -> what it is.
    """

    def __init__(self, source: ParameterSource, views: Mapping[str, WeightView]) -> None:
        self._source = source
        self._views = views

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._views[name].shape if name in self._views else self._source.shape(name)

    def load(self, name: str) -> np.ndarray:
        """Read one weight; a view without the rest of its parameter, where the source can."""
        view = self._views.get(name)
        if view is None:
            return self._source.load(name)
        n, k = view.shape
        if view.index is None:
            value = self._source.load(view.source)
        elif isinstance(self._source, IndexedSource):
            value = self._source.load_index(view.source, view.index)
        else:
            value = self._source.load(view.source)[view.index]
        return np.ascontiguousarray(value.reshape(k, n).T if view.transposed else value.reshape(n, k))

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Read `weight[index]`, without the rest where the source can."""
        if not isinstance(self._source, IndexedSource):
            return self.load(name)[index]
        if name not in self._views:
            return self._source.load_index(name, index)
        if not self._has_rows(self._views[name]):
            return np.ascontiguousarray(self.load(name)[index])
        return self._source.load_index(self._views[name].source, index).reshape(-1)

    def reads_parts(self, name: str) -> bool:
        """Whether `load_index` leaves the rest of a weight unread."""
        if not isinstance(self._source, IndexedSource):
            return False
        if name not in self._views:
            return self._source.reads_parts(name)
        view = self._views[name]
        return self._has_rows(view) and self._source.reads_parts(view.source)

    def _has_rows(self, view: WeightView) -> bool:
        """Whether the rows of a view are the parts of its parameter, as those of 1x1 convolutions are."""
        return view.index is None and not view.transposed and self._source.shape(view.source)[0] == view.shape[0]


def with_linear_form(imported: ImportedModel) -> ImportedModel:
    """Bring the linears of an imported model into one form, and read their weights as that form has them."""
    module, views = linear_form(imported.module, imported.entries)
    parameters = ViewedParameters(imported.parameters, views) if views else imported.parameters
    return replace(imported, module=module, parameters=parameters)
