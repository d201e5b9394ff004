"""What row kernels compile to at the shapes of models: registers, coalesced accesses, several architectures."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from hwpq_tvm.schedules.activations import quantize_activations
from hwpq_tvm.schedules.cuda import activations, gate, kv_cache, norm, rotary
from hwpq_tvm.schedules.gate import gate as describe_gate
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.kv_cache import kv_cache_update
from hwpq_tvm.schedules.layouts.tiles import activation_columns
from hwpq_tvm.schedules.norm import norm as describe_norm
from hwpq_tvm.schedules.rotary import rotary_update

from ...ptx import sass
from ...ptx.run import compiled, run, target
from ...ptx.violation import Violation

LEAD = (1, "seq_len")
ROWS = {
    # Of 1024 threads, and longer than their registers.
    "longest kept": (norm, describe_norm(LEAD, 32768, kind="layer", epsilon=1e-5, bias=True, returns_int8=True)),
    "read again": (norm, describe_norm(LEAD, 65536, kind="layer", epsilon=1e-5, bias=True, returns_int8=True)),
    "decode norm": (norm, describe_norm((1, 1), 4096, kind="rms", epsilon=1e-5, residual=True, returns_int8=True)),
    "gate": (
        gate,
        describe_gate(LEAD, 14336, activation="gelu_tanh", columns=[28672], gate_at=(0, 0), up_at=(0, 14336)),
    ),
    "float8": (activations, quantize_activations(LEAD, 4096, "float8_e4m3fn")),
    "float16": (activations, quantize_activations(LEAD, 4096, "float16")),
    "rotary": (
        rotary,
        rotary_update(
            layers=32,
            batch=1,
            heads=32,
            kv_heads=8,
            head_dim=128,
            rotary_dim=128,
            max_len=4096,
            seq_len=None,
            table_batch=1,
            columns=[6144],
            inputs=(0, 0, 0),
            first=(0, 4096, 5120),
            epsilons=(1e-6, 1e-6),
            cache_dtype="int8",
        ),
    ),
    "kv_cache": (
        kv_cache,
        kv_cache_update(layers=32, batch=1, kv_heads=8, head_dim=128, max_len=4096, seq_len=1, cache_dtype="int8"),
    ),
}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_everything_stays_in_registers(arch: str, tmp_path: Path) -> None:
    scheduled = [module.schedule(func, target(arch)) for module, func in ROWS.values()]
    for (_, func), kernel in zip(ROWS.values(), scheduled, strict=True):
        assert description(kernel) == description(func)
    facts = sass.inspect(scheduled, arch, tmp_path)
    assert len(facts) == len(ROWS)
    sass.check(facts)


def test_rows_are_read_and_written_once_in_whole_sectors() -> None:
    K, M = 2048, 8
    func = describe_norm(
        LEAD,
        K,
        kind="rms",
        epsilon=1e-5,
        residual=True,
        returns_sum=True,
        returns_float=False,
        returns_int8=True,
    )
    x, residual, v = np.random.default_rng().standard_normal((3, 1, M, K)).astype("float32")
    outputs = np.zeros((M, K), "int8"), np.zeros(M, "float32")
    report = run(norm.schedule(func, target("sm_80")), "sm_80", x, residual, np.ones(K, "float32"), v, *outputs)
    (launch,) = report.launches
    assert launch.conflicts() == 0
    accesses = launch.accesses("global")
    assert all(access.excess == 0 for access in accesses)
    threads = launch.threads[0]
    vectors = K // 4 // threads
    # x, residual and weights by each thread, then v and four codes at a time, and the scale by one.
    assert [access.width for access in accesses if not access.store] == [16] * 3 * vectors
    assert sorted(access.width for access in accesses if access.store) == [4] * (vectors + 1) + [16] * vectors


def test_every_barrier_is_needed() -> None:
    """Without one of them warps race for the cells of a reduction: but for the first, before which there is none."""
    K, pattern = 576, r"bar(rier)?\.sync[^;]*;"
    func = describe_norm(LEAD, K, kind="layer", epsilon=1e-5, returns_float=False, returns_int8=True)
    kernel = compiled(norm.schedule(func, target("sm_80")), "sm_80")
    count = len(re.findall(pattern, kernel.ptx))
    assert count == 6
    for dropped in range(1, count):
        order = itertools.count()
        mutant = kernel.mutated(
            lambda ptx, order=order, dropped=dropped: re.sub(
                pattern, lambda found: "" if next(order) == dropped else found[0], ptx
            )
        )
        x, weight = np.ones((1, 3, K), "float32"), np.ones(K, "float32")
        with pytest.raises(Violation, match="race"):
            mutant.run(x, weight, np.zeros((8, activation_columns(K)), "int8"), np.zeros(8, "float32"))
