"""How a diagnosis is shown."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..gpu import GPU, Driver, dotted
from .diagnosis import EXTRAS, Diagnosis
from .packages import Package
from .target_state import TargetState

_GB = 1e9


def diagnosis_view(found: Diagnosis) -> RenderableType:
    """Facts of the machine, a table of targets, what could be better, and what works."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(found):
        facts.add_row(Text(name), Text(value))
    notes = [Text(f"note: {note}", style="yellow") for note in found.notes]
    return Group(facts, "", targets_view(found.targets), *notes, Text(_verdict(found.targets), style="bold"))


def targets_view(states: Sequence[TargetState]) -> Table:
    """A table of targets; to those with the same answer it is given once."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("target", "builds", "runs", "kernels"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what to do", overflow="fold")
    alike: dict[tuple[bool, bool, tuple[str, ...]], list[TargetState]] = {}
    for state in states:
        alike.setdefault((state.builds, state.runs, state.missing), []).append(state)
    for (builds, runs, missing), group in alike.items():
        names = Text("\n".join(each.target for each in group))
        kernels = "\n".join("any (slow)" if each.kernels == "any" else each.kernels or "" for each in group)
        yes_or_no = [Text("\n").join([_yes(value)] * len(group)) for value in (builds, runs)]
        table.add_row(names, *yes_or_no, kernels, Text("\n".join(missing)))
    return table


def _yes(value: bool) -> Text:
    return Text("yes", style="green") if value else Text("no", style="red")


def _verdict(states: Sequence[TargetState]) -> str:
    both = [state.target for state in states if state.builds and state.runs]
    if not both:
        return "No target builds and runs here yet: see what to do above."
    return f"Models are built and run here for: {', '.join(both)}."


def _facts(found: Diagnosis) -> Iterator[tuple[str, str]]:
    cpu, cores, memory, disk = found.cpu, found.cores, found.memory, found.disk
    yield "CPU", f"{cpu.model} ({cpu.architecture}; {cpu.name} to the compiler)"
    yield "CPU features", " ".join(cpu.features) or "none that kernels use"
    physical = "" if cores.physical is None else f"{cores.physical} physical, "
    limit = "" if cores.quota is None else f", with the time of {cores.quota:g}"
    yield "cores", f"{physical}{cores.logical} logical, {cores.allowed} for this process{limit}"
    if cpu.cache_bytes:
        yield "last-level cache", f"{cpu.cache_bytes / 2**20:.0f} MiB"
    if memory is not None:
        yield "memory", f"{memory.total_bytes / _GB:.1f} GB, {memory.available_bytes / _GB:.1f} GB of it free"
    if found.bandwidth is not None:
        yield "memory bandwidth", f"{found.bandwidth / _GB:.1f} GB/s read with {cores.allowed} threads (measured now)"
    yield "temporary files", f"{disk.folder}: {disk.free_bytes / _GB:.1f} of {disk.total_bytes / _GB:.1f} GB free"
    yield "GPU", _gpus(found.tools.driver)
    linker, cuda = found.tools.linker, found.tools.cuda
    yield "C++ compiler", f"{linker.path} ({linker.version})" if linker.version else linker.path or "none"
    if cuda.version is None:
        yield "CUDA compiler", "none"
    else:
        absent = [name for name, there in cuda.tools.items() if not there]
        without = f", without {', '.join(absent)}" if absent else ""
        yield "CUDA compiler", f"nvcc {dotted(cuda.version)} in {cuda.folder}{without}"
    yield "tuning records", _records(found)
    yield "Python", found.python
    yield "packages", ", ".join(map(_package, found.packages))
    for extra, missing in found.extras.items():
        state = f"incomplete. Run: pip install 'hwpq-tvm[{extra}]'" if missing else "installed"
        yield f"extra [{extra}]", f"for {EXTRAS[extra]}: {state}"


def _package(package: Package) -> str:
    if package.version is None:
        return f"{package.name} not installed"
    return f"{package.name} {package.version}" + (f" ({package.needed} is needed)" if package.problem else "")


def _records(found: Diagnosis) -> str:
    counts = [f"{count} for {target}" for target, count in found.records.items() if count]
    return ", ".join(counts) or "none for this machine: kernels have default schedules until `hwpq tune` finds better"


def _gpus(driver: Driver) -> str:
    supports = f"driver for CUDA {dotted(driver.cuda_version)}: " if driver.cuda_version else ""
    return supports + ("; ".join(map(_gpu, driver.gpus)) or driver.problem or "")


def _gpu(gpu: GPU) -> str:
    return f"cuda:{gpu.index} {gpu.name}, compute capability {dotted(gpu.capability)}, {gpu.memory_bytes / _GB:.0f} GB"
