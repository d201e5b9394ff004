"""Every use of a matrix as a linear layer comes into one form; what is none stays as it is."""

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.importers.imported_model import ImportedModel, ModelMetadata
from hwpq_tvm.importers.weight_views import with_linear_form
from hwpq_tvm.relax_passes.linear_form import WeightView, linear_form


def test_a_matrix_that_is_not_transposed_and_one_that_is_a_table_too():
    @I.ir_module
    class Before:
        @R.function
        def main(
            ids: R.Tensor((3,), "int64"),
            table: R.Tensor((4, 6), "float32"),
            out: R.Tensor((6, 5), "float32"),
            kept: R.Tensor((5, 5), "float32"),
        ) -> R.Tensor((3, 4), "float32"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                x = R.take(table, ids, axis=0)
                y = R.matmul(x, out)
                z = R.matmul(y, R.permute_dims(kept))
                w = R.matmul(z, R.matmul(kept, kept))
                v = R.matmul(R.matmul(w, R.permute_dims(out)), R.permute_dims(table))
                R.output(v)
            return v

    @I.ir_module
    class Expected:
        @R.function
        def main(
            ids: R.Tensor((3,), "int64"),
            table: R.Tensor((4, 6), "float32"),
            out: R.Tensor((6, 5), "float32"),
            out_matrix: R.Tensor((5, 6), "float32"),
            kept: R.Tensor((5, 5), "float32"),
        ) -> R.Tensor((3, 4), "float32"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                x = R.take(table, ids, axis=0)
                m = R.permute_dims(out_matrix)
                y = R.matmul(x, m)
                z = R.matmul(y, R.permute_dims(kept))
                w = R.matmul(z, R.matmul(kept, kept))
                v = R.matmul(R.matmul(w, R.permute_dims(out)), R.permute_dims(table))
                R.output(v)
            return v

    found, views = linear_form(Before, ["main"])
    assert views == {"out.matrix": WeightView("out", (5, 6), None, True)}
    tvm.ir.assert_structural_equal(found, Expected)
    assert [p.name for p in found["main"].params] == ["ids", "table", "out", "out.matrix", "kept"]


def test_parts_of_stacked_parameters_in_several_entries():
    @I.ir_module
    class Before:
        @R.function
        def first(
            x: R.Tensor((2, 4), "float32"), up: R.Tensor((3, 6, 4), "float32"), down: R.Tensor((3, 6, 4), "float32")
        ) -> R.Tensor((2, 4), "float32"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.matmul(x, R.permute_dims(R.take(up, R.const(2, "int64"), axis=0)))
                part = R.squeeze(R.strided_slice(down, axes=[0], begin=[1], end=[2]), axis=[0])
                z = R.matmul(y, part)
                R.output(z)
            return z

        @R.function
        def second(
            x: R.Tensor((2, 4), "float32"), up: R.Tensor((3, 6, 4), "float32"), down: R.Tensor((3, 6, 4), "float32")
        ) -> R.Tensor((2, 6), "float32"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                z = R.matmul(x, R.take(R.permute_dims(up, axes=[0, 2, 1]), R.const(0, "int64"), axis=0))
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def first(
            x: R.Tensor((2, 4), "float32"),
            up_2: R.Tensor((6, 4), "float32"),
            up_0: R.Tensor((6, 4), "float32"),
            down_1: R.Tensor((4, 6), "float32"),
        ) -> R.Tensor((2, 4), "float32"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                m = R.permute_dims(up_2)
                y = R.matmul(x, m)
                n = R.permute_dims(down_1)
                product = R.matmul(y, n)
                z = product
                R.output(z)
            return z

        @R.function
        def second(
            x: R.Tensor((2, 4), "float32"),
            up_2: R.Tensor((6, 4), "float32"),
            up_0: R.Tensor((6, 4), "float32"),
            down_1: R.Tensor((4, 6), "float32"),
        ) -> R.Tensor((2, 6), "float32"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                m = R.permute_dims(up_0)
                product = R.matmul(x, m)
                z = product
                R.output(z)
            return z

    found, views = linear_form(Before, ["first", "second"])
    relax.analysis.well_formed(found)  # raises
    assert views == {
        "up.2": WeightView("up", (6, 4), 2, False),
        "down.1": WeightView("down", (4, 6), 1, True),
        "up.0": WeightView("up", (6, 4), 0, False),
    }
    tvm.ir.assert_structural_equal(found, Expected)
    for entry in ("first", "second"):
        assert [p.name for p in found[entry].params] == ["x", "up.2", "up.0", "down.1"]


def test_pointwise_convolutions_and_rows_that_are_computed():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 4, 5, 7), "float32"),
            rows: R.Tensor(("n", 3, 4), "float32"),
            point: R.Tensor((6, 4, 1, 1), "float32"),
            wide: R.Tensor((6, 4, 3, 3), "float32"),
            padded: R.Tensor((6, 4, 1, 1), "float32"),
            matrix: R.Tensor((5, 4), "float32"),
        ) -> R.Tuple(
            R.Tensor((2, 6, 3, 4), "float32"),
            R.Tensor((2, 6, 3, 5), "float32"),
            R.Tensor((2, 6, 7, 9), "float32"),
            R.Tensor(("n * 3", 5), "float32"),
        ):
            R.func_attr({"num_input": 2})
            n = T.int64()
            with R.dataflow():
                a = R.nn.conv2d(x, point, strides=[2, 2])
                b = R.nn.conv2d(x, wide)
                c = R.nn.conv2d(x, padded, padding=[1, 1, 1, 1])
                flat = R.reshape(rows, R.shape([n * 3, 4]))
                d = R.matmul(flat, R.permute_dims(matrix))
                gv = (a, b, c, d)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((2, 4, 5, 7), "float32"),
            rows: R.Tensor(("n", 3, 4), "float32"),
            point: R.Tensor((6, 4), "float32"),
            wide: R.Tensor((6, 4, 3, 3), "float32"),
            padded: R.Tensor((6, 4, 1, 1), "float32"),
            matrix: R.Tensor((5, 4), "float32"),
        ) -> R.Tuple(
            R.Tensor((2, 6, 3, 4), "float32"),
            R.Tensor((2, 6, 3, 5), "float32"),
            R.Tensor((2, 6, 7, 9), "float32"),
            R.Tensor(("n * 3", 5), "float32"),
        ):
            R.func_attr({"num_input": 2})
            n = T.int64()
            rows_0 = T.int64()
            with R.dataflow():
                m = R.permute_dims(point)
                every = R.strided_slice(x, axes=[2, 3], begin=[0, 0], end=[5, 7], strides=[2, 2])
                last = R.permute_dims(every, axes=[0, 2, 3, 1])
                product = R.matmul(last, m)
                a = R.permute_dims(product, axes=[0, 3, 1, 2])
                b = R.nn.conv2d(x, wide)
                c = R.nn.conv2d(x, padded, padding=[1, 1, 1, 1])
                flat = R.reshape(rows, R.shape([n * 3, 4]))
                t = R.permute_dims(matrix)
                named = R.match_cast(flat, R.Tensor((rows_0, 4), "float32"))
                e = R.matmul(named, t)
                d = R.match_cast(e, R.Tensor((n * 3, 5), "float32"))
                gv = (a, b, c, d)
                R.output(gv)
            return gv

    found, views = linear_form(Before, ["main"])
    relax.analysis.well_formed(found)  # raises
    assert views == {"point": WeightView("point", (6, 4), None, False)}
    tvm.ir.assert_structural_equal(found, Expected)


class Recorded:
    """Weights in memory, of which it notes what is read."""

    def __init__(self, **arrays):
        self.arrays = arrays
        self.reads = []

    def shape(self, name):
        return self.arrays[name].shape

    def load(self, name):
        self.reads.append(name)
        return self.arrays[name]

    def load_index(self, name, index):
        self.reads.append((name, index))
        return self.arrays[name][index]

    def reads_parts(self, name):
        return True


def test_views_are_read_as_the_form_has_them():
    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 4, 5, 5), "float32"),
            y: R.Tensor((2, 4), "float32"),
            point: R.Tensor((6, 4, 1, 1), "float32"),
            stacked: R.Tensor((3, 4, 5), "float32"),
            plain: R.Tensor((4, 3), "float32"),
        ):
            R.func_attr({"num_input": 2})
            with R.dataflow():
                a = R.nn.conv2d(x, point)
                b = R.matmul(y, R.take(stacked, R.const(1, "int64"), axis=0))
                c = R.matmul(y, plain)
                gv = (a, b, c)
                R.output(gv)
            return gv

    rng = np.random.default_rng(0)
    shapes = {"point": (6, 4, 1, 1), "stacked": (3, 4, 5), "plain": (4, 3)}
    source = Recorded(**{name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})
    metadata = ModelMetadata("a test", "a test", 0, "relax")
    found = with_linear_form(ImportedModel(Model, ("main",), source, metadata, {}))
    read = {name: found.parameters.load(name) for name in ("point", "stacked.1", "plain")}
    np.testing.assert_array_equal(read["point"], source.arrays["point"][:, :, 0, 0])
    np.testing.assert_array_equal(read["stacked.1"], source.arrays["stacked"][1].T)
    np.testing.assert_array_equal(read["plain"], source.arrays["plain"].T)
    assert source.reads == ["point", ("stacked", 1), "plain"]
    for name, array in read.items():
        assert array.flags.c_contiguous and array.shape == found.parameters.shape(name)
