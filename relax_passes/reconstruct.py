"""Reconstruction: adjusts the weights that are kept to the calibration data, with products by the Gram matrix only.

`G = X^T X / mean(diag)` of the layer's inputs X; W `[N, K]` is the weight, V what is kept of it, `lam = 0.01`. What is
minimised is `tr((V-W) G (V-W)^T) + lam |V-W|^2`, the error of the layer's output on the calibration data,
every row on its own. There is no inverse and no factorisation, so a singular Gram matrix is as good as any: lam and the
Jacobi preconditioner `1 / (diag G + lam)` keep every step finite.
"""

from collections.abc import Sequence

import tvm
from tvm import relax

from hwpq_tvm.schedules.compress.reconstruction import cg_start, cg_step, normalize_rows, regrow
from hwpq_tvm.schedules.compress.select import select
from hwpq_tvm.schedules.compress.selection import Selection
from hwpq_tvm.schedules.linear_float32 import linear_float32

from .kernel_calls import call_kernel

LAMBDA = 0.01
CG_STEPS = 16  # on held-out text 2 % less error of the outputs than 8, and 40 are hardly better
# Iterative hard thresholding: steps before the first new mask, then after each.
IHT_FIRST_STEPS = 4
IHT_STEPS = (6, 8)
# Multiply-adds per second and core that the prediction assumes of the float32 matrix product.
_RATE = 2e10


def products(method: str) -> int:
    """Products `[N, K] x [K, K]` that a method takes, two of them for measuring the result."""
    residual = 1
    if method == "none":
        return 0
    if method == "cg":
        return residual + CG_STEPS + 2
    return residual + IHT_FIRST_STEPS + sum(2 * residual + steps for steps in IHT_STEPS) + 2


def predicted_seconds(layers: Sequence[tuple[int, int, str]], cores: int) -> float:
    """Predict how long the reconstruction of layers `(N, K, method)` takes on `cores` cores."""
    return sum(products(method) * N * K**2 for N, K, method in layers) / (_RATE * cores)


def reconstruct(builder: relax.BlockBuilder, N: int, K: int, method: str, selection: Selection) -> "tvm.ir.GlobalVar":
    """Add the Relax function that reconstructs weights of one shape.

    Parameters
    ----------
    builder
        Gets the function and the kernels that it calls.
    N, K
        out_features and in_features.
    method
        `"cg"`: Jacobi-preconditioned conjugate gradients, all rows at once, with the mask that `selection` gives W.
        `"iht"`: after a few such steps every weight that was pruned gets the value that would serve best if it alone
        came back, `U = V + (1-M) ((W-V)G + lam (W-V)) / (diag G + lam)`, the mask is selected anew by
        `U^2 (diag G + lam)`, and so on (iterative hard thresholding with a diagonal metric).
    selection
        The rule of the masks.

    Returns
    -------
    tvm.ir.GlobalVar
        A function of ``(W [N, K], f [K], s [K], G [K, K]) -> V [N, K]``, float32, where f are the factors of the
        contribution, and s is the diagonal of G, with a mean of 1. Exact zeros of W stay zeros, and rows that satisfy
        the selection already come back as they are, up to rounding.
    """
    shapes = {"W": (N, K), "f": (K,), "s": (K,), "G": (K, K)}
    inputs = [relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in shapes.items()]
    with builder.function(f"reconstruct_{method}_{N}x{K}", inputs, private=True):
        with builder.dataflow():
            result = builder.emit_output(_Rows(builder, *inputs, selection=selection).run(method))
        return builder.emit_func_output(result)


class _Rows:
    """Emits the algorithms over all rows of one weight."""

    def __init__(
        self,
        builder: relax.BlockBuilder,
        W: relax.Var,
        f: relax.Var,
        s: relax.Var,
        G: relax.Var,
        *,
        selection: Selection,
    ) -> None:
        self.builder, self.f, self.G = builder, f, G
        self.N, self.K = (int(size) for size in W.ty.shape.values)
        self.matrix, self.column = W.ty, relax.TensorType([self.N], "float32")
        self.selection = selection
        self.W, self.scale = call_kernel(self.builder, normalize_rows(self.N, self.K), [W], [self.matrix, self.column])
        self.d = builder.emit(s + relax.const(LAMBDA, "float32"))

    def run(self, method: str) -> relax.Expr:
        V = self._select(self.W, self.f)
        if method == "cg":
            V = self._conjugate_gradients(V, CG_STEPS)
        else:
            V = self._conjugate_gradients(V, IHT_FIRST_STEPS)
            root = self.builder.emit(relax.op.sqrt(self.d))
            for steps in IHT_STEPS:
                args = [self.W, V, self._times_gram(self.W - V), self.d]
                (candidates,) = call_kernel(self.builder, regrow(self.N, self.K, LAMBDA), args, [self.matrix])
                V = self._conjugate_gradients(self._select(candidates, root), steps)
        return V * relax.op.expand_dims(self.scale, 1)

    def _select(self, values: relax.Var, factors: relax.Var) -> relax.Var:
        return call_kernel(self.builder, select(self.selection, self.N, self.K), [values, factors], [self.matrix])[0]

    def _times_gram(self, rows: relax.Expr) -> relax.Var:
        """`rows G`; G is its own transpose."""
        func = linear_float32((self.N,), self.K, self.K)
        return call_kernel(self.builder, func, [self.builder.emit(rows), self.G], [self.matrix])[0]

    def _conjugate_gradients(self, V: relax.Var, steps: int) -> relax.Var:
        """Adjust V where it is not zero."""
        kept = V
        args = [self.W, V, self._times_gram(self.W - V), self.d]
        out = [self.matrix, self.matrix, self.column]
        residual, direction, energy = call_kernel(self.builder, cg_start(self.N, self.K, LAMBDA), args, out)
        for _ in range(steps):
            args = [kept, V, residual, direction, energy, self._times_gram(direction), self.d]
            V, residual, direction, energy = call_kernel(
                self.builder, cg_step(self.N, self.K, LAMBDA), args, [self.matrix, *out]
            )
        return V
