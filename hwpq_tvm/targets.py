"""A user's word for a target -> a `tvm.target.Target`. Parses only; what a target can run is `schedules.registry`'s."""

import difflib
import functools
from collections.abc import Mapping

import tvm
from tvm.target import codegen

from .cpu import architecture, host_cores, missing_features
from .errors import TargetError
from .gpu import capability_of, find_gpus, how_it_runs, too_old
from .schedules.cuda.architectures import ARCHITECTURES

# Micro-architecture levels that a user can name: word -> what LLVM is told.
_CPU_LEVELS: dict[str, dict[str, object]] = {
    "x86-64": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
    "x86-64-v2": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"},
    "x86-64-v3": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "x86-64-v4": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v4"},
    # The level has no dot product of int8, which Cascade Lake, Zen 4 and all that came after them have.
    "x86-64-v4-vnni": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]},
    "aarch64": {"mtriple": "aarch64-linux-gnu", "mcpu": "generic", "mattr": ["+neon", "+dotprod"]},
}
_TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}

# Architectures whose instructions are all in one with another suffix.
_EQUIVALENT = {"sm_90": "sm_90a"}


def known_targets() -> list[str]:
    """Words that are targets on every machine, its CPU first."""
    return ["cpu", *(f"cpu:{level}" for level in _CPU_LEVELS), "cuda", *(f"cuda:{name}" for name in ARCHITECTURES)]


def resolve_target(target: "str | tvm.target.Target", *, threads: int | None = None) -> tvm.target.Target:
    """Turn a user's word into a Target.

    Parameters
    ----------
    target
        `"cpu"` (this machine), `"cpu:NAME"` with a level such as `x86-64-v3` or a CPU as LLVM calls it, such as
        `cascadelake` or `neoverse-n1`; `"cuda"` (the GPU and the CPU of this machine), `"cuda:sm_80"` with an
        architecture, a tag of TVM's such as `"nvidia/nvidia-a100"`, both beside any CPU of this machine's kind; or a
        Target, taken as it is as far as kernels depend on it.
    threads
        Threads that the compiled model runs with; by default every core that this process may use.

    Returns
    -------
    tvm.target.Target
        A target of kind `llvm`, or of kind `cuda` with such a one as its host; `num-cores` is set.

    Raises
    ------
    TargetError
        When the word is unknown, names an architecture that nothing is built for, or a GPU that is not there.
    """
    if threads is not None and threads < 1:
        raise TargetError(f"threads={threads}: expected at least 1.")
    cores = threads or host_cores()
    if isinstance(target, tvm.target.Target):
        return _given(target, cores, keep=threads is None)
    if not isinstance(target, str):
        raise TargetError(f'target is a {type(target).__name__}: expected a word such as "cpu" or a tvm Target.')
    if target == "cpu":
        return tvm.target.Target({"kind": "llvm", **_this_cpu(), "num-cores": cores})
    if target.startswith("cpu:") and (options := _named_cpu(target[4:])) is not None:
        return tvm.target.Target({"kind": "llvm", **options, "num-cores": cores})
    if target == "cuda":
        return _cuda({"arch": _gpu_here(), "host": {"kind": "llvm", **_this_cpu()}}, cores)
    if target.startswith("cuda:"):
        return _cuda({"arch": target[5:]}, cores)
    if target.startswith("nvidia/") and target in tvm.target.list_tags():
        return _given(tvm.target.Target(target), cores, keep=threads is None)
    known = known_targets()
    others = [*(f"cpu:{name}" for name in _llvm_cpus()), *(tag for tag in tvm.target.list_tags() if "nvidia/" in tag)]
    near = difflib.get_close_matches(target, [*known, *others], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise TargetError(
        f"unknown target {target!r}: expected one of {', '.join(known)}, cpu:NAME with a CPU that LLVM knows, such as "
        f"cpu:cascadelake, or a tag of TVM's such as nvidia/nvidia-a100.{hint}"
    )


def _given(target: tvm.target.Target, cores: int, *, keep: bool) -> tvm.target.Target:
    """Complete a Target; `keep` the number of cores that it has."""
    if target.kind.name == "cuda":
        return _cuda(target.export(), cores, keep=keep)
    if target.kind.name != "llvm":
        raise TargetError(
            f"target of kind {target.kind.name!r}: kernels exist for CPUs (kind 'llvm') and NVIDIA GPUs (kind 'cuda'); "
            'use "cpu" or "cuda:sm_80".'
        )
    if keep and "num-cores" in target.attrs:
        return target
    return tvm.target.Target({**target.export(), "num-cores": cores})


def _cuda(options: Mapping[str, object], cores: int, *, keep: bool = False) -> tvm.target.Target:
    """Target of a GPU: its limits are those of its architecture, its host any CPU where none is given."""
    name = str(options.get("arch", ""))
    found = ARCHITECTURES.get(_EQUIVALENT.get(name, name))
    if found is None:
        raise TargetError(
            f"CUDA architecture {name or '(none)'}: kernels exist for {_architectures()}; name one of them. Newer GPUs "
            'run what is built for "cuda:sm_89".'
        )
    host = tvm.target.Target(options.get("host") or {"kind": "llvm", **_any_cpu()})
    limits = {
        "arch": found.name,
        "max_shared_memory_per_block": found.shared_memory_per_block,
        "max_threads_per_block": 1024,
        "thread_warp_size": 32,
        "registers_per_block": 65536,
    }
    return tvm.target.Target({"kind": "cuda", **options, **limits, "host": _given(host, cores, keep=keep)})


def _gpu_here() -> str:
    """Architecture to build for, for the GPU of this machine."""
    driver = find_gpus()
    if not driver.gpus:
        raise TargetError(
            f'target "cuda" is the GPU of this machine, and {driver.problem}: name the architecture instead, one of '
            f"{_architectures()} (nvidia/nvidia-a100 and the like do too)."
        )
    gpu = driver.gpus[0]
    if (name := best_architecture(gpu.capability)) is None:
        raise TargetError(too_old(gpu))
    return name


def best_architecture(capability: tuple[int, int]) -> str | None:
    """Architecture to build for, for a GPU of a compute capability; None where no kernels run on it.

    One that comes as a binary if there is one, such as sm_89 for (8, 9); otherwise, such as for (12, 0), the newest
    whose PTX holds all of its kernels.
    """
    names = sorted(ARCHITECTURES, key=capability_of)
    binaries = [name for name in names if how_it_runs(name, capability) == "binary"]
    portable = [name for name in names if how_it_runs(name, capability) == "ptx" and not name.endswith("a")]
    found = binaries or portable
    return found[-1] if found else None


def _architectures() -> str:
    return ", ".join(f'"cuda:{name}"' for name in ARCHITECTURES)


def _this_cpu() -> dict[str, object]:
    """Name this machine's CPU to LLVM, less what its kind has and it lacks: hypervisors hide features."""
    options: dict[str, object] = {"mcpu": codegen.llvm_get_system_cpu()}
    hidden = missing_features(cpu_features(tvm.target.Target({"kind": "llvm", **options})))
    return {**options, "mattr": [f"-{feature}" for feature in hidden]} if hidden else options


def _any_cpu() -> dict[str, object]:
    """Name every CPU of this machine's kind to LLVM: enough for code that only starts the kernels of a GPU."""
    return {"mcpu": "x86-64" if architecture() == "x86_64" else "generic"}


def _named_cpu(name: str) -> dict[str, object] | None:
    """What LLVM is told of a level or a CPU; None where neither is known by that name."""
    if name in _CPU_LEVELS:
        return _CPU_LEVELS[name]
    triple = _llvm_cpus().get(name)
    return None if triple is None else {"mtriple": triple, "mcpu": name}


@functools.cache
def _llvm_cpus() -> dict[str, str]:
    """CPUs of 64 bits that LLVM knows by name, and the triple of each; this machine's kind where two share a name."""
    triples = sorted(_TRIPLES.items(), key=lambda item: item[0] == architecture())
    found = {}
    for kind, triple in triples:
        for name in codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", "mtriple": triple})):
            candidate = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": str(name)})
            if kind != "x86_64" or "64bit" in cpu_features(candidate):
                found[str(name)] = triple
    return found


def cpu_part(target: tvm.target.Target) -> tvm.target.Target:
    """The CPU that a target's host code runs on: the target itself, or the host of a GPU."""
    return target if target.kind.name == "llvm" or target.host is None else target.host


def check_native(target: tvm.target.Target) -> None:
    """Raise TargetError when the host code is of another architecture than this machine: nothing links for it here."""
    wanted = str(cpu_part(target).attrs.get("mtriple", architecture())).split("-", 1)[0]
    if wanted != architecture():
        raise TargetError(
            f"target of architecture {wanted}, this machine is {architecture()}: models are not cross-compiled yet; "
            f"build on a machine with {wanted}."
        )


def host_target(*, threads: int | None = None) -> tvm.target.Target:
    """Target of this machine, on which calibration and compression run whatever the model is built for."""
    return resolve_target("cpu", threads=threads)


def cpu_features(target: tvm.target.Target) -> frozenset[str]:
    """LLVM's names of the CPU features that host code for `target` may use, such as `avx2`, `fma`, `dotprod`."""
    host = cpu_part(target)
    if host.kind.name != "llvm":
        return frozenset()
    return frozenset(str(feature) for feature in codegen.llvm_get_cpu_features(host))
