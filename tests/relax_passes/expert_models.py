"""A layer of experts in Relax, as importers make it: one linear for each expert, on the tokens that chose it."""

import numpy as np
import tvm
from tvm import relax, tirx

from hwpq_tvm.relax_passes.kernel_calls import call_kernel
from hwpq_tvm.schedules.experts import expert_routing, expert_rows, expert_sum

EXPERTS, TOP_K, K, N = 4, 2, 18, 10


def experts(*, router: bool = True) -> tvm.IRModule:
    """`main(x [seq_len, K], weights [seq_len, TOP_K], router [EXPERTS, K], expert0 .. [N, K])`, up to 16 tokens.

    Without a router `main` has an input `chosen [seq_len, TOP_K]` before `weights` in place of the router's choice.
    """
    builder, M = relax.BlockBuilder(), tirx.Var("seq_len", "int64")
    x = relax.Var("x", relax.TensorType([M, K], "float32"))
    chosen = relax.Var("chosen", relax.TensorType([M, TOP_K], "int64"))
    scale = relax.Var("weights", relax.TensorType([M, TOP_K], "float32"))
    gate = relax.Var("router", relax.TensorType([EXPERTS, K], "float32"))
    matrices = [relax.Var(f"expert{e}", relax.TensorType([N, K], "float32")) for e in range(EXPERTS)]
    inputs = [x, scale] if router else [x, chosen, scale]
    attrs = {"num_input": len(inputs), "tir_var_upper_bound": {"seq_len": 16}}
    with builder.function("main", [*inputs, *([gate] if router else []), *matrices], attrs=attrs):
        with builder.dataflow():

            def linear(rows: relax.Expr, weight: relax.Var) -> relax.Var:
                return builder.emit(relax.op.matmul(rows, builder.emit(relax.op.permute_dims(weight))))

            if router:
                scores = builder.emit(relax.op.nn.softmax(linear(x, gate)))
                top = builder.emit(relax.op.topk(scores, k=TOP_K, ret_type="indices", dtype="int64"))
            order, starts, counts = call_kernel(
                builder,
                expert_routing("seq_len", TOP_K, EXPERTS),
                [top if router else chosen],
                [
                    relax.TensorType([M * TOP_K], "int32"),
                    relax.TensorType([EXPERTS], "int32"),
                    relax.TensorType([EXPERTS], "int64"),
                ],
            )
            sizes = [tirx.Var("expert_tokens", "int64") for _ in range(EXPERTS)]
            builder.match_cast(builder.emit(relax.op.tensor_to_shape(counts)), relax.ShapeType(sizes))
            total: list[relax.Var] = []
            for e, weight in enumerate(matrices):
                place = [order, starts, relax.prim_value(tirx.IntImm("int64", e))]
                read = expert_rows("seq_len", "expert_tokens", K, TOP_K, EXPERTS)
                (rows,) = call_kernel(builder, read, [x, *place], [relax.TensorType([sizes[e], K], "float32")])
                y = linear(rows, weight)
                add = expert_sum("seq_len", "expert_tokens", N, TOP_K, EXPERTS, first=not total)
                out = [relax.TensorType([M, N], "float32")]
                total = call_kernel(builder, add, [y, *place, scale, *total], out, {0: 5} if total else None)
            result = builder.emit_output(relax.Tuple(total))
        builder.emit_func_output(result)
    return builder.get()


def expected(x: np.ndarray, chosen: np.ndarray, scale: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    """What `main` computes, in float64."""
    result = np.zeros((len(x), N))
    for token, place in np.ndindex(chosen.shape):
        matrix = matrices[chosen[token, place]].astype("float64")
        result[token] += scale[token, place] * (matrix @ x[token])
    return result
