"""What counts as a linear layer, an embedding and the output projection."""

from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.relax_passes.linears import (
    find_embeddings,
    find_linears,
    inputs_of_weights,
    layer_name,
    looked_up_rows,
    output_projections,
)


@I.ir_module
class Model:
    @R.function
    def prefill(
        ids: R.Tensor((1, "n"), "int64"),
        other: R.Tensor((4,), "int64"),
        table: R.Tensor((11, 4), "float32"),
        positions: R.Tensor((9, 4), "float32"),
        a: R.Tensor((6, 4), "float32"),
        b: R.Tensor((4, 6), "float32"),
        bias: R.Tensor((4,), "float32"),
        square: R.Tensor((4, 4), "float32"),
        cube: R.Tensor((1, 4, 4), "float32"),
    ) -> R.Tuple(R.Tensor((1, "n", 11), "float32"), R.Tensor((1, "n", 6), "float32")):
        R.func_attr({"num_input": 2})
        n = T.int64()
        with R.dataflow():
            flat = R.reshape(ids, R.shape([n]))
            x = R.reshape(R.take(table, flat, axis=0), R.shape([1, n, 4]))
            moved = R.take(positions, other, axis=0)
            y = R.matmul(x, R.permute_dims(a, axes=[-1, -2]))
            z = R.add(R.matmul(y, R.permute_dims(b)), bias)
            not_transposed = R.matmul(z, square)
            not_a_parameter = R.matmul(z, R.permute_dims(R.strided_slice(moved, axes=[0], begin=[0], end=[4])))
            not_a_matrix = R.matmul(z, R.permute_dims(cube, axes=[0, 2, 1]))
            mixed = R.add(R.add(not_transposed, not_a_parameter), R.reshape(not_a_matrix, R.shape([1, n, 4])))
            logits = R.tanh(R.matmul(mixed, R.permute_dims(table)))
            result = (logits, y)
            R.output(result)
        return result


def test_linears_are_products_with_a_transposed_parameter():
    found = find_linears(Model["prefill"])
    assert [(call.weight.name, call.shape, call.activation.ty.ndim) for call in found] == [
        ("a", (6, 4), 3),
        ("b", (4, 6), 3),
        ("table", (11, 4), 3),
    ]


def test_embeddings_are_looked_up_by_the_first_input():
    assert [call.weight.name for call in find_embeddings(Model["prefill"])] == ["table"]


def test_ids_are_rows_of_the_tables_that_they_are_looked_up_in():
    assert looked_up_rows(Model["prefill"]) == {"ids": 11, "other": 9}


@I.ir_module
class FromTheEnd:
    @R.function
    def main(
        ids: R.Tensor((3,), "int64"),
        others: R.Tensor((3,), "int64"),
        table: R.Tensor((11, 4), "float32"),
        rows: R.Tensor((9, 4), "float32"),
    ) -> R.Tensor((3, 4), "float32"):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            front = R.where(R.less(ids, R.const(0, "int64")), R.add(ids, R.const(11, "int64")), ids)
            other = R.where(R.less(others, R.const(0, "int64")), R.add(ids, R.const(9, "int64")), others)
            out = R.add(R.take(table, front, axis=0), R.take(rows, other, axis=0))
            R.output(out)
        return out


def test_ids_that_may_count_from_the_end_are_looked_through():
    assert looked_up_rows(FromTheEnd["main"]) == {"ids": 11}


def test_the_output_projection_is_the_last_linear_before_the_first_output():
    function = Model["prefill"]
    assert {weight.name for weight in output_projections(function, find_linears(function))} == {"table"}


def test_a_weight_with_several_inputs_has_none_in_common_with_others():
    a, b, table = find_linears(Model["prefill"])
    assert inputs_of_weights([a, b, table]) == {"a": a.activation, "b": b.activation, "table": table.activation}
    for uses in (2, 3):
        assert inputs_of_weights([a, *[b] * uses]) == {"a": a.activation, "b": "b"}


def test_layer_names():
    assert layer_name("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj"
    assert layer_name("w") == "w"
