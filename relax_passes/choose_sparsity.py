"""Dense or 2:4, by the time that kernels take: what is known of both, and the choice for layers that leave it open."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from tvm import relax
from tvm.target import Target

from hwpq_tvm.config import LayerScheme
from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cuda.devices import reference_device
from hwpq_tvm.schedules.cuda.space import best
from hwpq_tvm.schedules.cuda.work import Linear
from hwpq_tvm.schedules.layouts import mma
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.records import TuningRecord, TuningRecords
from hwpq_tvm.schedules.weight_formats import WeightFormat
from hwpq_tvm.scheme import AUTO

from .linears import LinearCall, inputs_of_weights
from .usage import added, runs_of_call

FindFormat = Callable[[LayerScheme], WeightFormat]
# Number of tokens -> label of the format that is stored -> seconds.
Times = Mapping[int, Mapping[str, float]]
# Share of the time of dense that 2:4, which is less accurate, has to save: less is within what measurements differ by.
LEAST_GAIN = 0.01


@dataclass(frozen=True, slots=True)
class Kernel:
    """Linears on one input that run as one kernel, in 2:4 or dense.

    Attributes
    ----------
    out_features
        N of each linear.
    K
        in_features.
    sparse, dense
        The two formats.
    runs
        Number of tokens -> runs per request (`usage`).
    """

    out_features: tuple[int, ...]
    K: int
    sparse: WeightFormat
    dense: WeightFormat
    runs: Mapping[int, float]

    def workload(self, weight_format: WeightFormat, tokens: int) -> LinearWorkload:
        """The kernel as records know it."""
        return LinearWorkload(
            weight_format=weight_format.name,
            activation_dtype=weight_format.activation_dtype,
            group_size=weight_format.group_size,
            M=tokens,
            N=sum(weight_format.rows(N) for N in self.out_features),
            K=self.K,
        )


@dataclass(frozen=True, slots=True)
class SparsityChoice:
    """What `sparsity="auto"` came to.

    Attributes
    ----------
    sparsity
        "2:4" or None.
    why
        The ground, in a line.
    """

    sparsity: str | None
    why: str


def runs_of_weights(calls: Iterable[tuple[relax.Function, Iterable[LinearCall]]]) -> dict[str, dict[int, float]]:
    """Count how often a request runs each linear.

    Parameters
    ----------
    calls
        Entry functions with their linears.

    Returns
    -------
    dict
        Weight -> number of tokens -> runs per request.
    """
    runs: dict[str, list[dict[int, float]]] = {}
    for function, linears in calls:
        for call in linears:
            lead = call.activation.ty.shape.values[:-1]
            runs.setdefault(call.weight.name, []).append(runs_of_call(function, lead))
    return {weight: added(each) for weight, each in runs.items()}


def measured_times(kernel: Kernel, records: TuningRecords) -> dict[int, dict[str, float]]:
    """Look up what a kernel takes in either format, as `Times`; where only one of them was measured, nothing."""
    return _times(_measured(kernel, records))


def _measured(kernel: Kernel, records: TuningRecords) -> dict[int, dict[str, TuningRecord]]:
    """Records of a kernel for numbers of tokens that both formats were measured for."""
    found = {}
    for tokens in kernel.runs:
        both = {}
        for weight_format in (kernel.sparse, kernel.dense):
            record = records.best(kernel.workload(weight_format, tokens))
            if record is not None and record.evidence > Evidence.PREDICTED:
                both[weight_format.source.label] = record
        if len(both) == 2:
            found[tokens] = both
    return found


def _times(measured: Mapping[int, Mapping[str, TuningRecord]]) -> dict[int, dict[str, float]]:
    return {tokens: {label: each.median for label, each in both.items()} for tokens, both in measured.items()}


def choose_sparsities(
    calls: Iterable[LinearCall],
    schemes: Mapping[str, LayerScheme],
    find_format: FindFormat,
    runs: Mapping[str, Mapping[int, float]],
    records: TuningRecords,
    target: Target | None,
) -> dict[str, SparsityChoice]:
    """Choose 2:4 or dense for layers that leave it open; those on one input run as one kernel and get the same.

    Their times are those of the kernel that they would be part of in 2:4, which is what tuning measures in both
    formats: layers that are 2:4 in any case belong to it too.

    Parameters
    ----------
    calls
        The linears of a function.
    schemes
        Weight -> scheme that is asked for, of layers that may be 2:4.
    find_format
        Weight format of a scheme.
    runs
        As `runs_of_weights` gives them.
    records
        Tuning records for the target.
    target
        What the model will run on; None is any CPU.

    Returns
    -------
    dict
        Weight -> choice; nothing for layers that can't be 2:4, or whose scheme leaves nothing open.
    """
    calls = list(calls)
    inputs, shapes = inputs_of_weights(calls), {call.weight.name: call.shape for call in calls}
    together: dict[tuple[relax.Expr | str, WeightFormat], list[str]] = {}
    for weight, scheme in schemes.items():
        if scheme.sparsity in (AUTO, "2:4"):
            sparse = find_format(replace(scheme, sparsity="2:4"))
            if sparse.why_not(*shapes[weight]) is None:
                together.setdefault((inputs[weight], sparse), []).append(weight)
    choices: dict[str, SparsityChoice] = {}
    for (_, sparse), weights in together.items():
        left_open = [weight for weight in weights if schemes[weight].sparsity == AUTO]
        dense = registry.rival(sparse, target)
        if left_open and dense is not None:
            out_features = tuple(shapes[weight][0] for weight in weights)
            kernel = Kernel(out_features, shapes[weights[0]][1], sparse, dense, runs[weights[0]])
            choices |= dict.fromkeys(left_open, _choose(kernel, records, target))
    return choices


def _choose(kernel: Kernel, records: TuningRecords, target: Target | None) -> SparsityChoice:
    """Let measured times decide; on a GPU without them predicted ones; without either it is 2:4."""
    measured = _measured(kernel, records)
    if set(measured) == set(kernel.runs):
        weakest = min(record.evidence for both in measured.values() for record in both.values())
        return _faster(kernel, _times(measured), weakest.name.lower())
    if target is not None and target.kind.name == "cuda" and (predicted := _predicted_times(kernel, target)):
        return _faster(kernel, predicted, f"predicted for {reference_device(target).name}")
    missing = ", ".join(str(tokens) for tokens in kernel.runs if tokens not in measured)
    return SparsityChoice("2:4", f"auto is 2:4 without tuning records of both formats for M = {missing}")


def _faster(kernel: Kernel, times: Times, how: str) -> SparsityChoice:
    """Choose 2:4 where a request takes clearly less time with it: where both take as long, dense is more accurate."""
    sparse, dense = (
        1e3 * sum(times[tokens][label] * runs for tokens, runs in kernel.runs.items())
        for label in (kernel.sparse.source.label, kernel.dense.source.label)
    )
    sparsity, word = ("2:4", "2:4") if sparse < (1 - LEAST_GAIN) * dense else (None, "dense")
    return SparsityChoice(
        sparsity, f"auto chose {word}: {sparse:.2f} ms of a request in 2:4, {dense:.2f} ms dense, {how}"
    )


def _predicted_times(kernel: Kernel, target: Target) -> Times | None:
    """What either format is predicted to take on a GPU; None where one has no kernel on tensor cores."""
    formats = (kernel.sparse, kernel.dense)
    if any(each.name not in mma.LAYOUTS for each in formats):
        return None
    device = reference_device(target)

    def seconds(weight_format: WeightFormat, tokens: int) -> float:
        workload = kernel.workload(weight_format, tokens)
        linear = Linear(workload.weight_format, workload.N, workload.K, workload.group_size)
        return best(linear, device, tokens).prediction.microseconds * 1e-6

    with suppress(UnsupportedSchemeError):
        return {tokens: {each.source.label: seconds(each, tokens) for each in formats} for tokens in kernel.runs}
    return None
