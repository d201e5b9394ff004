"""The predicted time of a linear's kernel with its working, and what the compiler and the interpreter count of it.

    python -m tests.benchmarks.cuda.predicted --arch sm_80 --format sparse24_int8 --shape 16 4096 4096

No GPU is needed or used: registers and shared memory are ptxas's, loads and bank conflicts are counted by the PTX
interpreter on the first output features (all thread blocks do the same).
"""

import argparse
from dataclasses import dataclass, replace

import numpy as np

from hwpq_tvm.schedules.cuda.devices import Device, reference_device
from hwpq_tvm.schedules.cuda.linear import schedule_with
from hwpq_tvm.schedules.cuda.performance import Prediction, predict
from hwpq_tvm.schedules.cuda.space import Parameters, best
from hwpq_tvm.schedules.cuda.work import Linear as Shape
from hwpq_tvm.schedules.cuda.work import work_of
from hwpq_tvm.targets import resolve_target
from tests.benchmarks.cuda.linears import Linear, formats
from tests.ptx import sass
from tests.ptx.run import LaunchReport, run


@dataclass(frozen=True)
class Counted:
    """What the interpreter counted of a kernel on a slice of a linear.

    Attributes
    ----------
    blocks
        Thread blocks that ran.
    weight_loads
        Bytes of a lane in each kind of global load before the last multiplication.
    sectors, least_sectors
        Of 32 bytes, that these loads fetched, and the fewest that hold what they fetched.
    main_loop_conflicts, other_conflicts
        Cycles lost to bank conflicts of shared memory before the last multiplication, and after it.
    worst_error
        Largest difference from NumPy in float64, in multiples of what may be.
    """

    blocks: int
    weight_loads: tuple[int, ...]
    sectors: int
    least_sectors: int
    main_loop_conflicts: int
    other_conflicts: int
    worst_error: float


def count(linear: Linear, parameters: Parameters, arch: str, rng: np.random.Generator) -> Counted:
    """Run a kernel on random numbers by the interpreter."""
    target = resolve_target(f"cuda:{arch}")
    func = schedule_with(linear.func(any_tokens=False), target, ((None, parameters),))
    packed, dense = linear.packed(rng)
    xq, xs, x = linear.activations(rng)
    out = np.full(linear.out_shape, 93, np.float32)
    report = run(func, arch, xq, xs, *packed.values(), out)
    expected, allowed = linear.expected(dense, x)
    main = report.launches[0]
    last = _last_multiplication(main)
    entries = main.counters.accesses.items()
    loads = [each for (pc, space), each in entries if space == "global" and pc < last and not each.store]
    conflicts = {early: 0 for early in (True, False)}
    for (pc, space), each in entries:
        if space == "shared":
            conflicts[pc <= last] += each.excess
    return Counted(
        blocks=int(np.prod(main.grid)),
        weight_loads=tuple(sorted({each.width for each in loads})),
        sectors=sum(each.cost for each in loads),
        least_sectors=sum(each.floor for each in loads),
        main_loop_conflicts=conflicts[True],
        other_conflicts=conflicts[False] + sum(each.conflicts() for each in report.launches[1:]),
        worst_error=float((np.abs(out[0, :, : linear.N] - expected) / allowed).max()),
    )


def _last_multiplication(launch: LaunchReport) -> int:
    """Place of the kernel's last instruction that multiplies: what stands before it is the main loop and its start."""
    words = ("mma.", "wgmma.", "dp4a.")
    return max(pc for pc, text in enumerate(launch.counters.texts) if any(word in text for word in words))


def compiled(linear: Linear, parameters: Parameters, arch: str) -> sass.KernelFacts:
    """What ptxas makes of the main kernel: a second one, which adds up splits of K, has no such shared memory."""
    target = resolve_target(f"cuda:{arch}")
    func = schedule_with(linear.func(any_tokens=False), target, ((None, parameters),))
    return max(sass.inspect(func, arch), key=lambda facts: facts.shared)


def prediction(linear: Linear, device: Device) -> tuple[Parameters, Prediction, sass.KernelFacts]:
    """Predict the time of the chosen kernel with ptxas's registers and shared memory in place of estimates."""
    shape = Shape(linear.weights.name, linear.N, linear.K, linear.weights.group_size)
    parameters = best(shape, device, linear.M).parameters
    facts = compiled(linear, parameters, device.architecture.name)
    work = replace(work_of(parameters, shape, linear.M), registers=facts.registers, shared_bytes=facts.shared)
    found = predict(work, device)
    assert found is not None, f"{facts} doesn't fit {device.name}"
    return parameters, found, facts


def main() -> None:
    """Print the working."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_80")
    parser.add_argument("--format", default="sparse24_int8")
    parser.add_argument("--shape", type=int, nargs=3, default=(16, 4096, 4096), metavar=("M", "N", "K"))
    options = parser.parse_args()
    target = resolve_target(f"cuda:{options.arch}")
    (weights,) = formats(target, [options.format])
    linear = Linear(weights, *options.shape)
    parameters, found, facts = prediction(linear, reference_device(target))
    print(found.working())
    print(
        f"ptxas: {facts.registers} registers, {facts.shared} bytes of shared memory, {facts.spills} bytes of spills, "
        f"{facts.stack} bytes of stack"
    )
    counted = count(replace(linear, N=min(linear.N, 64)), parameters, options.arch, np.random.default_rng())
    print(
        f"interpreter, {counted.blocks} blocks: loads of {', '.join(map(str, counted.weight_loads))} bytes a lane, "
        f"{counted.sectors} sectors of {counted.least_sectors} at least; bank conflicts: {counted.main_loop_conflicts} "
        f"cycles in the main loop, {counted.other_conflicts} after it; error {counted.worst_error:.2f} of what may be"
    )


if __name__ == "__main__":
    main()
