"""Brings every linear layer into one form: `matmul(x, permute_dims(W))` with a parameter W `[N, K]`.

Models store and use their matrices in other ways too: transposed, as kernels of 1x1 convolutions, stacked for experts.
Such a parameter is replaced by matrices `[N, K]`, each a view of it, so that nothing behind this has to know.
"""

from collections.abc import Iterable, Mapping
from itertools import count

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm_ffi.structural import structural_equal

from .kernel_calls import bound_as
from .linear_uses import LinearUse, WeightView, find_uses

__all__ = ["WeightView", "linear_form"]


def linear_form(mod: tvm.IRModule, entries: Iterable[str]) -> tuple[tvm.IRModule, dict[str, WeightView]]:
    """Rewrite the linears of the entry functions to products with a transposed parameter `[N, K]`.

    These are products with a float32 matrix among the parameters that is not transposed first; products with a part
    `[e]`, transposed or not, of a parameter `[E, N, K]` or `[E, K, N]`; and convolutions with a 1x1 kernel, of any
    stride, without padding or groups. The leading dimensions of what linears read become numbers or single variables.

    Parameters
    ----------
    mod
        The imported module.
    entries
        Names of its entry functions.

    Returns
    -------
    module, views
        The module, whose entries take views in place of the parameters that they stand for, the same in the same order
        in every entry; a parameter that is used in another way as well stays before them. And each view by its name:
        `<parameter>.<e>` for a part, otherwise the parameter's own, or `<parameter>.matrix` where that stays.
    """
    entries = tuple(entries)
    uses = {entry: find_uses(mod[entry]) for entry in entries}
    views = tuple(dict.fromkeys(use.view for each in uses.values() for use in each.values() if not use.is_standard))
    for entry in entries:
        function = mod[entry]
        variables = {view: relax.Var("view", relax.TensorType(view.shape, "float32")) for view in views}
        rewriter = _Rewriter(mod, uses[entry], variables)
        body = rewriter.visit_expr(function.body)
        mod = rewriter.builder_.get()
        params = [*function.params, *variables.values()]
        mod[entry] = relax.Function(params, body, function.ret_ty, attrs=function.attrs)
    mod = relax.transform.DeadCodeElimination(list(entries))(mod)
    return _order_weights(mod, entries, views)


@mutator
class _Rewriter(PyExprMutator):
    """Rewrites the linears of one function."""

    def __init__(
        self, mod: tvm.IRModule, uses: Mapping[relax.Var, LinearUse], variables: Mapping[WeightView, relax.Var]
    ) -> None:
        super().__init__(mod)
        self.uses = uses
        self.variables = variables
        self.numbers = count()
        self.dimensions: list[tuple[relax.Expr, tirx.Var]] = []
        self.flat: dict[relax.Expr, relax.Expr] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        use = self.uses.get(binding.var)
        if use is None or (use.is_standard and _has_plain_lead(use.activation)):
            super().visit_var_binding_(binding)
            return
        if use.is_standard:
            x, matrix = self.visit_expr(use.activation), self.visit_expr(binding.value.args[1])
            product = self._product(x, matrix)
        else:
            matrix = self.builder_.emit(relax.op.permute_dims(self.variables[use.view]))
            x = self.visit_expr(use.activation)
            product = self._product(x, matrix) if use.strides is None else self._convolution(x, matrix, use.strides)
        if not structural_equal(product.ty, binding.var.ty):
            product = self.builder_.match_cast(product, binding.var.ty)
        self.set_var_remap(binding.var, bound_as(self.builder_, binding.var, product))

    def _convolution(self, x: relax.Expr, matrix: relax.Expr, strides: tuple[int, ...]) -> relax.Var:
        """Multiply the channels of `[batch, K, *space]`."""
        if any(stride != 1 for stride in strides):
            space = list(range(2, 2 + len(strides)))
            ends = [x.ty.shape.values[axis] for axis in space]
            x = self.builder_.emit(relax.op.strided_slice(x, space, [0] * len(space), ends, list(strides)))
        last = x.ty.ndim - 1
        x = self.builder_.emit(relax.op.permute_dims(x, [0, *range(2, last + 1), 1]))
        return self.builder_.emit(relax.op.permute_dims(self._product(x, matrix), [0, last, *range(1, last)]))

    def _product(self, x: relax.Expr, matrix: relax.Expr) -> relax.Var:
        """Multiply `[*lead, K]` by `[K, N]`, with a variable for every dimension that is computed."""
        if _has_plain_lead(x):
            return self.builder_.emit(relax.op.matmul(x, matrix))
        if x not in self.flat:
            *lead, k = x.ty.shape.values
            plain = relax.TensorType([*(self._variable(dim) for dim in lead), k], "float32")
            self.flat[x] = self.builder_.match_cast(x, plain)
        product = self.builder_.emit(relax.op.matmul(self.flat[x], matrix))
        computed = [*x.ty.shape.values[:-1], matrix.ty.shape.values[1]]
        return self.builder_.match_cast(product, relax.TensorType(computed, "float32"))

    def _variable(self, dim: relax.Expr) -> relax.Expr:
        """A number or variable that stands for a dimension, the same one for the same expression."""
        if isinstance(dim, tirx.IntImm | tirx.Var):
            return dim
        for known, variable in self.dimensions:
            if structural_equal(known, dim):
                return variable
        variable = tirx.Var(f"rows_{next(self.numbers)}", "int64")
        self.dimensions.append((dim, variable))
        return variable


def _has_plain_lead(x: relax.Expr) -> bool:
    """Whether kernels can name the leading dimensions of `[*lead, K]`."""
    return all(isinstance(dim, tirx.IntImm | tirx.Var) for dim in x.ty.shape.values[:-1])


def _order_weights(
    mod: tvm.IRModule, entries: tuple[str, ...], views: tuple[WeightView, ...]
) -> tuple[tvm.IRModule, dict[str, WeightView]]:
    """Put views where the parameters are that they are parts of, name them, and drop parameters without a use."""
    split = {}
    for entry in entries:
        inputs, end = int(mod[entry].attrs["num_input"]), len(mod[entry].params) - len(views)
        split[entry] = mod[entry].params[:inputs], mod[entry].params[inputs:end], mod[entry].params[end:]
    # By name: all entries have the same weights.
    kept: set[str] = set()
    for entry, (_, weights, _) in split.items():
        used = set(relax.analysis.free_vars(mod[entry].body))
        kept |= {str(weight.name) for weight in weights if weight in used}
    sources = {view.source for view in views}
    names = _names(views, kept)
    for entry, (inputs, weights, variables) in split.items():
        named = {
            view: (variable, relax.Var(names[view], variable.ty))
            for view, variable in zip(views, variables, strict=True)
        }
        ordered = []
        for weight in weights:
            if str(weight.name) in kept or str(weight.name) not in sources:
                ordered.append(weight)
            ordered += [new for view, (_, new) in named.items() if view.source == str(weight.name)]
        function = mod[entry].bind_params(dict(named.values()))
        mod[entry] = relax.Function([*inputs, *ordered], function.body, function.ret_ty, attrs=mod[entry].attrs)
    return mod, {names[view]: view for view in views}


def _names(views: tuple[WeightView, ...], kept: set[str]) -> dict[WeightView, str]:
    taken, names = set(kept), {}
    for view in views:
        name = view.source if view.index is None else f"{view.source}.{view.index}"
        while name in taken:
            name += ".matrix"
        taken.add(name)
        names[view] = name
    return names
