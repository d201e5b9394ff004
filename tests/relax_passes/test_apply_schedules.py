"""ApplySchedules: every TensorIR function gets a schedule, under the name its callers know, and the choice is told."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax
from tvm.s_tir import Schedule
from tvm.script import ir as I
from tvm.script import relax as R

from hwpq_tvm.relax_passes.apply_schedules import ApplySchedules
from hwpq_tvm.relax_passes.pipeline import compile_module
from hwpq_tvm.runtime.tvm_runtime import VirtualMachine, as_array, as_tensor
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.linear_workload import BUCKETS, LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.records import TuningRecords
from hwpq_tvm.schedules.stock import stock_module
from hwpq_tvm.targets import resolve_target

from ..schedules import databases, reference

N, K = 64, 320
WEIGHTS = registry.weight_format(sparsity="2:4", dtype="int8")
TUNED = {"prefill": WEIGHTS.linear((1, "seq_len"), N, K), "decode": WEIGHTS.linear((1, 1), N, K)}


@I.ir_module
class Sums:
    @R.function
    def main(x: R.Tensor((3, 5), "float32")) -> R.Tensor((3,), "float32"):
        with R.dataflow():
            y = R.sum(R.exp(x), axis=[1])
            R.output(y)
        return y


def module(**kernels):
    """A module with kernels of ours and one that TVM made."""
    builder = relax.BlockBuilder(relax.transform.LegalizeOps()(Sums))
    for name, func in (kernels or {"ours": WEIGHTS.linear((1, 1), 16, 64)}).items():
        builder.add_func(func, name)
    return builder.get()


def tuned(folder, target, buckets=BUCKETS):
    """Records of `TUNED`, and the points that they are of: for one token, and for each bucket."""
    rows = []
    for tokens in (1, *buckets):
        workload = LinearWorkload.of(TUNED["decode" if tokens == 1 else "prefill"], tokens)
        points = registry.space(workload, target)
        rows.append((workload, points[1 + tokens % (len(points) - 1)], [1e-5], Evidence.MEASURED))
    databases.write(folder, target, rows)
    return TuningRecords.load(folder, target), [point for _, point, _, _ in rows]


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


@pytest.mark.parametrize("isa", reference.TARGETS)
def test_records_choose_the_parameters(isa: str, tmp_path) -> None:
    target = reference.TARGETS[isa]
    records, (of_one, *others) = tuned(tmp_path / "here", target)
    schedules = ApplySchedules(target, records)
    after = schedules(module(**TUNED))
    plans = {"decode": ((None, of_one),), "prefill": tuple(zip((*BUCKETS[:-1], None), others, strict=True))}
    for name, kind, tokens in (("decode", "gemv", "1 token"), ("prefill", "gemm", "4, 16, 64, 256 tokens")):
        choice = schedules.choices[name]
        assert choice.schedule == ("portable, tuned" if isa == "portable" else "tuned")
        assert choice.record == f"here: {tokens}"
        assert choice.kernel.endswith(f".sparse24_int8.{kind}")
        expected, _ = registry.schedule(TUNED[name], target, plans[name])
        tvm.ir.assert_structural_equal(after[name].without_attr("global_symbol"), expected)
        by_default, _ = registry.schedule(TUNED[name], target)
        assert not tvm_ffi.structural_equal(by_default.body, expected.body)


def test_records_schedule_other_functions_too(tmp_path) -> None:
    """Those of TVM's own rules; what has no description only."""
    mod, target = module(), reference.AVX2
    func = mod["tir_exp"]
    held = stock_module(func)
    schedule = Schedule(held)
    schedule.parallel(schedule.get_loops(schedule.get_child_blocks(schedule.get_sblock("root"))[0])[0])
    databases.write_stock(tmp_path / "here", target, [(func, schedule, 1e-6, Evidence.MEASURED)])
    schedules = ApplySchedules(target, TuningRecords.load(tmp_path / "here", target))
    after = schedules(mod)
    assert schedules.choices == {
        "tir_exp": registry.ScheduleChoice("generic", "tuned", "here"),
        "sum": registry.ScheduleChoice("generic", "generic"),
        "ours": registry.ScheduleChoice("avx2.sparse24_int8.gemv", "default"),
    }
    assert "T.parallel" in after["tir_exp"].script()


@pytest.mark.parametrize("word", ["cpu:x86-64-v4-vnni", "cpu:x86-64-v3", "cpu:x86-64", "cpu:aarch64"])
def test_without_records_nothing_changes(word: str, tmp_path) -> None:
    target = resolve_target(word, threads=2)
    kernels = {**TUNED, "rows": registry.weight_format(sparsity=None, dtype="float32").linear((1, "seq_len"), 8, 64)}
    mod = module(**kernels)
    # Records of another linear are none either.
    records, _ = tuned(tmp_path, target, buckets=())
    others = ApplySchedules(target, records)
    found = {"none": ApplySchedules(target), "empty": ApplySchedules(target, TuningRecords.empty()), "others": others}
    for case, schedules in found.items():
        after = schedules(mod)
        for gvar, func in mod.functions_items():
            name = gvar.name_hint
            if name == "main" or (case == "others" and name == "decode"):
                continue
            expected, choice = registry.schedule(func, target)
            tvm.ir.assert_structural_equal(after[name], expected.with_attr("global_symbol", name))
            assert schedules.choices[name] == choice
            assert choice.record is None
            assert "tuned" not in choice.schedule
    assert "tuned" in others.choices["decode"].schedule


def test_a_tuned_model_multiplies(tmp_path) -> None:
    """Through the whole pipeline, for numbers of tokens on both sides of the ranges."""
    target = resolve_target("cpu", threads=2)
    records, _ = tuned(tmp_path / "here", target, buckets=(4, 64))
    func = TUNED["prefill"]
    builder = relax.BlockBuilder()
    seq_len = func.params[-1].ty.shape[1]
    arguments = [relax.Var(p.name, R.Tensor(list(p.ty.shape), str(p.ty.dtype))) for p in func.params[:-1]]
    shape = relax.Var("shape", R.Shape([seq_len]))
    with builder.function("main", [*arguments, shape], attrs={"num_input": len(arguments) + 1}):
        with builder.dataflow():
            kernel = builder.add_func(func, "linear")
            out = R.Tensor((1, seq_len, N), "float32")
            result = builder.emit_output(builder.emit(relax.call_tir(kernel, arguments, out)))
        builder.emit_func_output(result)
    compiled = compile_module(builder.get(), target, tmp_path / "model.so", records=records)
    assert compiled.choices["linear"].record == "here: 4, 64 tokens (16, 256 by default)"
    run, rng = VirtualMachine(tmp_path / "model.so").entry("main"), np.random.default_rng(N)
    packed, dense = reference.random_weights(rng, WEIGHTS, N, K, exact=True)
    for M in (1, 4, 5, 17, 64, 65, 300):
        xq = np.zeros((padded_rows(M) if M > 1 else 8, activation_columns(K)), np.int8)
        xq[:M, :K] = rng.integers(-127, 128, (M, K))
        xs = np.ones(len(xq), np.float32)
        found = as_array(run(*map(as_tensor, (xq, xs, *packed.values())), tvm_ffi.Shape((M,))))
        np.testing.assert_array_equal(found[0], (xq[:M, :K].astype(np.float64) @ dense.T).astype(np.float32))
