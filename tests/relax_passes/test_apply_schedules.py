"""ApplySchedules: every TensorIR function gets a schedule, under the name its callers know, and the choice is told."""

import tvm
import tvm_ffi
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwpq_tvm.relax_passes.apply_schedules import ApplySchedules
from hwpq_tvm.schedules import registry
from hwpq_tvm.targets import resolve_target


@I.ir_module
class Sums:
    @R.function
    def main(x: R.Tensor((3, 5), "float32")) -> R.Tensor((3,), "float32"):
        with R.dataflow():
            y = R.sum(R.exp(x), axis=[1])
            R.output(y)
        return y


def module():
    """A module with one kernel of ours and one that TVM made."""
    builder = relax.BlockBuilder(relax.transform.LegalizeOps()(Sums))
    func = registry.weight_format(sparsity="2:4", dtype="int8").linear((1, 1), 16, 64)
    builder.add_func(func, "ours")
    return builder.get()


def test_choices_are_told_by_name():
    for word, kernel, schedule in (
        ("cpu:x86-64-v3", "avx2.sparse24_int8.gemv", "default"),
        ("cpu:x86-64", "any.sparse24_int8.gemv", "portable"),
    ):
        schedules = ApplySchedules(resolve_target(word))
        after = schedules(module())
        assert schedules.choices["ours"] == registry.ScheduleChoice(kernel, schedule)
        assert {choice.kernel for name, choice in schedules.choices.items() if name != "ours"} == {"generic"}
        assert {g.name_hint for g in after.get_global_vars()} == {g.name_hint for g in module().get_global_vars()}
        assert after["ours"].attrs["global_symbol"] == "ours"
        assert not tvm_ffi.structural_equal(after["ours"].body, module()["ours"].body)
        # Relax is none of this pass's business.
        tvm.ir.assert_structural_equal(after["main"], module()["main"], map_free_vars=True)
