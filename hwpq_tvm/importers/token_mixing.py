"""Tokens may meet in attention only: what an exported forward pass does along the axis of tokens.

Decoding computes one token at a time, and remembers of earlier ones what attention put into the KV cache. A model that
mixes tokens in any other way (convolutions over time, recurrent states, an attention of its own) would compute
something else there, without any error. So every operator on tensors that have an axis of tokens has to be known to
treat tokens apart.
"""

import math
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.exported_program import Origin, module_path

# Reorder, add or drop axes, and no element changes.
_VIEWS = {
    "_unsafe_view", "alias", "clone", "contiguous", "detach", "dropout", "expand", "expand_as", "flatten",
    "lift_fresh_copy", "movedim", "numpy_T", "permute", "repeat", "reshape", "squeeze", "stack", "swapaxes", "t", "to",
    "transpose", "type_as", "unflatten", "unsqueeze", "view", "view_as",
}  # fmt: skip
# Those of them that read the elements in their order as another shape.
_RESHAPES = {"_unsafe_view", "flatten", "reshape", "unflatten", "view", "view_as"}
# Work along the axes `dim`, and along no other.
_ALONG_DIM = {
    "_log_softmax", "_softmax", "all", "amax", "amin", "any", "argmax", "argmin", "argsort", "cat", "chunk", "concat",
    "concatenate", "cumprod", "cumsum", "flip", "gather", "glu", "index_select", "linalg_vector_norm", "log_softmax",
    "logsumexp", "max", "mean", "median", "min", "narrow", "norm", "prod", "repeat_interleave", "roll", "scatter",
    "select", "slice", "softmax", "sort", "split", "split_with_sizes", "std", "sum", "tensor_split", "topk", "unbind",
    "var",
}  # fmt: skip
# Read the sizes of their arguments only.
_SIZES_ONLY = {
    "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "one_hot", "ones_like", "zeros_like",
}  # fmt: skip
# Give all tokens the same, whatever they are made of.
_SAME_FOR_ALL = {"empty", "expand", "full", "ones", "zeros", *_SIZES_ONLY}
# Read a table, their first argument, by what they know of each token.
_LOOKUPS = {"embedding", "gather", "index_select"}
# Products of matrices, by the place of their factors among the arguments.
_PRODUCTS = {"addmm": 1, "baddbmm": 1, "bmm": 0, "matmul": 0, "mm": 0}


def check_token_mixing(program: ExportedProgram, origin: Origin, *, tokens: str, chosen: str) -> None:
    """Refuse a model in which tokens meet outside of the attention operator.

    Parameters
    ----------
    program
        The exported forward pass, without operators whose results nobody uses.
    origin
        The model.
    tokens
        The input of token ids, `[batch, seq_len]`, whose symbolic second dimension tells the axes of tokens.
    chosen
        The input that says which tokens' logits are wanted: indexing by it is no mixing.

    Raises
    ------
    ImportModelError
        With every operator that mixes tokens, or isn't known not to, and a module where it is.
    """
    inputs = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    (symbol,) = inputs[tokens].meta["val"].shape[1].node.expr.free_symbols
    check = _Check(symbol, inputs[chosen])
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and check.axes(node.meta.get("val")):
            check.parts[node] = 1
        if node.op == "call_function" and check.mixes(node):
            found.setdefault(str(node.target).removeprefix("aten."), module_path(node, origin))
    if found:
        places = ", ".join(f"{operator} in {path}" for operator, path in found.items())
        raise ImportModelError(
            f"{origin.name} mixes tokens outside of attention, or has operators that are not known to keep them apart:"
            f" {places}; decoding one token at a time keeps keys and values of earlier ones and nothing else;"
            f" {origin.advice}"
        )


class _Check:
    """Knows which axes are tokens, and what operators do with them.

    Attributes
    ----------
    parts
        Of results that have an axis of tokens: how many neighbours along it belong to one token. Whatever else the
        axis holds, such as sequences of a batch, is in front of its tokens.
    """

    def __init__(self, symbol: Any, chosen: fx.Node) -> None:
        self.symbol = symbol
        self.chosen = chosen
        self.parts: dict[fx.Node, int] = {}

    def axes(self, value: Any) -> list[int]:
        """Axes of tokens of a tensor, counted from the last, which is -1."""
        if not isinstance(value, torch.Tensor):
            return []
        return [axis - value.ndim for axis, size in enumerate(value.shape) if self._has_tokens(size)]

    def _has_tokens(self, size: Any) -> bool:
        return isinstance(size, torch.SymInt) and self.symbol in size.node.expr.free_symbols

    def mixes(self, node: Any) -> bool:
        """Whether an operator mixes tokens, or is not known not to."""
        result = node.meta.get("val")
        values = [each.meta.get("val") for each in node.all_input_nodes]
        given = [value for value in values if self.axes(value)]
        parts = {self.parts[each] for each in node.all_input_nodes if each in self.parts}
        if len(parts) > 1:
            return True
        if parts and any(map(self.axes, _tensors(result))):
            (self.parts[node],) = parts
        if not isinstance(node.target, torch._ops.OpOverload):
            # What takes a tuple apart mixes nothing; other functions have functions of their own inside.
            return bool(given) and not isinstance(result, torch.SymInt)
        if isinstance(result, torch.SymInt | torch.SymBool | int | bool):
            return False
        if node.target.namespace == "hwpq":
            return parts not in (set(), {1})
        # What changes its input computes the same otherwise.
        name = str(node.target.overloadpacket.__name__).removesuffix("_")
        if name == "arange":
            # Positions are an input: of its own a model can count from the first new token only.
            return bool(self.axes(result)) and len(node.meta.get("nn_module_stack") or {}) > 1
        if not given:
            # Rows of a table by their place would be those of the first tokens for every token that is decoded.
            return name not in _SAME_FOR_ALL and any(map(self.axes, _tensors(result)))
        if name == "index":
            return self._picks_tokens(node)
        if any(len(self.axes(each)) != 1 for each in [*given, *_tensors(result)]):
            return True
        if name in _SIZES_ONLY or (name in _LOOKUPS and not self.axes(values[0])):
            return False
        if torch.Tag.pointwise in node.target.tags or name == "_to_copy":
            return any(self.axes(each) != self.axes(result) for each in given)
        if name in _RESHAPES:
            return not parts or self._tears_tokens(node, given[0], result)
        if name in _VIEWS:
            return False
        if name in _ALONG_DIM:
            return self._works_along_tokens(node, given, result)
        if name in ("layer_norm", "rms_norm"):
            return self.axes(given[0])[0] >= -len(_argument(node, "normalized_shape"))
        if name == "linear":
            return self.axes(values[0]) in ([], [-1]) or len(given) > 1
        if name in _PRODUCTS:
            first = _PRODUCTS[name]
            a, b = (node.args[i].meta["val"] for i in (first, first + 1))
            return self.axes(a) == [-1] or (self.axes(b) == [-2 if b.ndim > 1 else -1])
        return True

    def _picks_tokens(self, node: Any) -> bool:
        """Whether an index chooses among the tokens, other than those whose logits are wanted."""
        axes = self.axes(node.args[0].meta["val"])
        places = list(node.args[1])
        if not axes or (places == [None, self.chosen] and self.parts.get(node.args[0]) == 1):
            return False
        axis = axes[0] + node.args[0].meta["val"].ndim
        others = [place for place in places if place is not None]
        return len(axes) > 1 or places[axis : axis + 1] not in ([], [None]) or any(map(self._of_tokens, others))

    def _of_tokens(self, node: fx.Node) -> bool:
        return bool(self.axes(node.meta["val"]))

    def _tail(self, value: torch.Tensor) -> int:
        """Number of elements behind the axis of tokens."""
        (axis,) = self.axes(value)
        return math.prod(int(size) for size in value.shape[value.ndim + axis + 1 :])

    def _tears_tokens(self, node: Any, given: torch.Tensor, result: torch.Tensor) -> bool:
        """Whether a tensor is read in another shape in which a token's elements are no longer side by side."""
        (axis,) = self.axes(result)
        size: Any = result.shape[axis]
        per_token = size.node.expr / self.symbol
        parts, rest = divmod(self.parts[node] * self._tail(given), self._tail(result))
        if rest or not (per_token / sympy.Integer(parts)).is_integer:
            return True
        self.parts[node] = parts
        return False

    def _works_along_tokens(self, node: Any, given: list[torch.Tensor], result: Any) -> bool:
        dims = _argument(node, "dim")
        if dims is None:
            return True
        if node.target is torch.ops.aten.slice.Tensor and result.shape == given[0].shape:
            return False
        ndim = given[0].ndim
        along = {dim - ndim if dim >= 0 else dim for dim in (dims if isinstance(dims, list | tuple) else [dims])}
        return any(axis in along for each in given for axis in self.axes(each))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, torch.Tensor):
            yield each


def _argument(node: Any, name: str) -> Any:
    """An argument of an operator by its name, or its default; None if it has no such."""
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            if place < len(node.args):
                return node.args[place]
            return node.kwargs.get(name, argument.default_value)
    return None
