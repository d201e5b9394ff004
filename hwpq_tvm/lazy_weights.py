"""Float weights that a compiled module fetches one by one while it runs, so that it can be larger than memory."""

from typing import Any

from .importers import ParameterSource
from .runtime.tvm_runtime import as_tensor


class LazyWeights:
    """What a module that was compiled with `lazy_weights` takes as its last argument.

    It keeps the first weights that it is asked for, as far as they fit the memory, and reads the others again each
    time. To replace the oldest by the newest would keep none long enough: every run asks for all of them in turn.

    Parameters
    ----------
    parameters
        Where weights are read.
    budget
        Bytes of weights that may stay.

    Attributes
    ----------
    asked
        Names of the weights that were asked for, in order.
    """

    def __init__(self, parameters: ParameterSource, budget: int) -> None:
        self._parameters = parameters
        self._left = budget
        self._resident: dict[str, Any] = {}
        self.asked: dict[str, None] = {}

    def __call__(self, index: int, name: str) -> Any:
        """Give a weight by its name, as a TVM tensor."""
        if name in self._resident:
            return self._resident[name]
        self.asked[name] = None
        array = self._parameters.load(name)
        tensor = as_tensor(array)
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            self._resident[name] = tensor
        return tensor
