"""DropCasts: casts that change nothing go, others stay."""

import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwpq_tvm.relax_passes.drop_casts import DropCasts


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "int32"):
        with R.dataflow():
            same = R.astype(x, "float32")
            y = R.add(same, x)
            z = R.astype(y, "int32")
            R.output(z)
        return z


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "int32"):
        with R.dataflow():
            y = R.add(x, x)
            z = R.astype(y, "int32")
            R.output(z)
        return z


def test_the_golden_ir():
    after = relax.transform.CanonicalizeBindings()(DropCasts()(Before))
    tvm.ir.assert_structural_equal(after, Expected)


def test_the_module_of_the_caller_is_left_as_it_is():
    function = Before["main"]
    DropCasts()(Before)
    assert Before["main"].same_as(function)


def handed_out(way):
    """A function that hands a cast of its parameter x, which changes nothing, out of its block in some way."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((2, 3), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            output = bb.emit_output(way(bb, relax.op.astype(x, "float32")))
        bb.emit_func_output(output)
    return bb.get()


@pytest.mark.parametrize(
    "way",
    [
        lambda bb, cast: cast,
        lambda bb, cast: bb.emit(cast),
        lambda bb, cast: relax.Tuple([bb.emit(cast)]),
        lambda bb, cast: relax.op.astype(bb.emit(cast), "float32"),
    ],
)
def test_no_result_is_a_parameter_itself(way):
    after = relax.transform.CanonicalizeBindings()(DropCasts()(handed_out(way)))
    relax.analysis.well_formed(after)
    casts = []
    relax.analysis.post_order_visit(after["main"], lambda e: casts.append(e) if isinstance(e, relax.Call) else None)
    assert [cast.op.name for cast in casts] == ["relax.astype"]
