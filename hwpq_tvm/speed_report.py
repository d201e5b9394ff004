"""Measured speed as people read it: a table of the models, and one of where a step's time goes."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from .benchmark import BenchmarkResult, Speed
from .report import megabytes
from .runtime.profile import PARTS, FunctionTime, Profile

# Share of a step below which functions share a row.
_SMALL = 0.005


def speed_table(results: Mapping[str, BenchmarkResult], stream: Mapping[int, float]) -> Table:
    """Medians and quartiles of each model at each length.

    Parameters
    ----------
    results
        What `benchmark.compare` measured, by name.
    stream
        Read bandwidth of the machine in bytes per second, by threads; empty when it was not measured.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("what")
    for heading in ("tokens/s", "quartiles", "weights GB/s", "of the machine's"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        rows: list[tuple[str, Speed, float | None]] = [(f"prefill {s.length}", s, None) for s in result.prefill]
        rows += [(f"decode at {s.length}", s, result.decode_bytes_per_second(s)) for s in result.decode]
        for what, speed, rate in rows:
            best = stream.get(result.threads) if result.device == "cpu" else None
            table.add_row(
                escape(name),
                what,
                f"{speed.tokens_per_second:.1f}",
                " - ".join(f"{value:.1f}" for value in speed.quartiles),
                f"{rate / 1e9:.1f}" if rate else "",
                f"{rate / best:.0%}" if rate and best else "",
            )
    return table


def memory_line(result: BenchmarkResult) -> str:
    """What a model takes, and what was measured."""
    where = f"{result.threads} threads" if result.device == "cpu" else f"on {result.device}"
    if result.batch > 1:
        where += f", {result.batch} sequences at once"
    return (
        f"weights {megabytes(result.weight_bytes)} ({megabytes(result.decode_weight_bytes)} read by the linears of a "
        f"decode step), KV cache {megabytes(result.kv_cache_bytes)}; {where}, {result.new_tokens} new tokens, "
        f"median of {result.repeat}"
    )


def profile_table(profile: Profile) -> Table:
    """Functions of a step, the longest first, grouped into parts."""
    table = Table(box=None, header_style="bold", pad_edge=False, caption_justify="left")
    if profile.part_seconds(PARTS[-1]) < 0:
        table.caption = (
            "The virtual machine's share is shown as 0: between callbacks, the kernels alone took longer than the step "
            "without them."
        )
    table.add_column("", overflow="fold")
    for heading in ("ms", "share", "calls", "us a call", "weights GB/s"):
        table.add_column(heading, justify="right")
    for part in PARTS:
        functions = [function for function in profile.functions if function.part == part]
        together = FunctionTime(
            part,
            part,
            sum(function.calls for function in functions),
            profile.part_seconds(part),
            sum(function.weight_bytes for function in functions),
        )
        _row(table, profile, part, together, style="bold")
        small = [function for function in functions if function.seconds < _SMALL * profile.step_seconds]
        for function in functions:
            if function not in small:
                _row(table, profile, f"  {function.name}", function)
        if small:
            calls, seconds = sum(f.calls for f in small), sum(f.seconds for f in small)
            _row(table, profile, f"  {len(small)} smaller ones", FunctionTime("", part, calls, seconds, 0))
        if part == PARTS[-1]:
            entry = FunctionTime("", part, 1, profile.entry_seconds, 0)
            _row(table, profile, "  before the first call and after the last", entry)
    return table


def _row(table: Table, profile: Profile, label: str, time: FunctionTime, style: str | None = None) -> None:
    # What remains of a measurement when another one is taken out of it may be less than nothing.
    seconds = max(time.seconds, 0.0)
    table.add_row(
        escape(label),
        f"{1e3 * seconds:.3f}",
        f"{seconds / profile.step_seconds:.1%}",
        str(time.calls),
        f"{1e6 * seconds / time.calls:.1f}" if time.calls else "",
        f"{time.weight_bytes / seconds / 1e9:.1f}" if time.weight_bytes and seconds else "",
        style=style,
    )


def profile_line(profile: Profile) -> str:
    """How a profile was made."""
    step, callback = 1e3 * profile.step_seconds, 1e9 * profile.callback_seconds
    return (
        f"{step:.3f} ms without callbacks; callbacks of {callback:.0f} ns are taken out of the other times; medians of "
        f"{profile.repeat}. The virtual machine's share is what the kernels leave of the step."
    )
