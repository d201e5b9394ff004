"""A user's word for a target -> a `tvm.target.Target`. Parses only; what a target can run is `schedules.registry`'s."""

import difflib
import functools

import tvm
from tvm.target import codegen

from .cpu import architecture, host_cores, missing_features
from .errors import TargetError

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


def resolve_target(target: "str | tvm.target.Target", *, threads: int | None = None) -> tvm.target.Target:
    """Turn a user's word into a Target.

    Parameters
    ----------
    target
        `"cpu"` (this machine), `"cpu:NAME"` with a level such as `x86-64-v3` or a CPU as LLVM calls it, such as
        `cascadelake` or `neoverse-n1`, or a Target, taken as it is.
    threads
        Threads that the compiled model runs with; by default every core that this process may use.

    Returns
    -------
    tvm.target.Target
        A target of kind `llvm` with `num-cores` set.

    Raises
    ------
    TargetError
        When the word is unknown, or names a target that nothing is built for yet.
    """
    if threads is not None and threads < 1:
        raise TargetError(f"threads={threads}: expected at least 1.")
    cores = threads or host_cores()
    if isinstance(target, tvm.target.Target):
        if target.kind.name != "llvm":
            raise TargetError(
                f"target of kind {target.kind.name!r}: kernels exist for CPUs (kind 'llvm') only; use \"cpu\"."
            )
        if threads is None and "num-cores" in target.attrs:
            return target
        return tvm.target.Target({**target.export(), "num-cores": cores})
    if not isinstance(target, str):
        raise TargetError(f'target is a {type(target).__name__}: expected a word such as "cpu" or a tvm Target.')
    if target == "cpu":
        return tvm.target.Target({"kind": "llvm", **_this_cpu(), "num-cores": cores})
    if target.startswith("cpu:") and (options := _named_cpu(target[4:])) is not None:
        return tvm.target.Target({"kind": "llvm", **options, "num-cores": cores})
    if target == "cuda" or target.startswith(("cuda:", "nvidia/")):
        raise TargetError(f'target {target!r}: there are no CUDA kernels in this version yet; use target="cpu".')
    known = ["cpu", *(f"cpu:{level}" for level in _CPU_LEVELS)]
    near = difflib.get_close_matches(target, [*known, *(f"cpu:{name}" for name in _llvm_cpus())], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise TargetError(
        f"unknown target {target!r}: expected one of {', '.join(known)}, or cpu:NAME with a CPU that LLVM knows, "
        f"such as cpu:cascadelake.{hint}"
    )


def _this_cpu() -> dict[str, object]:
    """Name this machine's CPU to LLVM, less what its kind has and it lacks: hypervisors hide features."""
    options: dict[str, object] = {"mcpu": codegen.llvm_get_system_cpu()}
    hidden = missing_features(cpu_features(tvm.target.Target({"kind": "llvm", **options})))
    return {**options, "mattr": [f"-{feature}" for feature in hidden]} if hidden else options


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


def check_native(target: tvm.target.Target) -> None:
    """Raise TargetError when `target` is of another architecture than this machine: nothing links for it here."""
    wanted = str(target.attrs.get("mtriple", architecture())).split("-", 1)[0]
    if wanted != architecture():
        raise TargetError(
            f"target of architecture {wanted}, this machine is {architecture()}: models are not cross-compiled yet; "
            f"build on a machine with {wanted}."
        )


def host_target(*, threads: int | None = None) -> tvm.target.Target:
    """Target of this machine, on which calibration and compression run whatever the model is built for."""
    return resolve_target("cpu", threads=threads)


def cpu_features(target: tvm.target.Target) -> frozenset[str]:
    """LLVM's names of the CPU features that code for `target` may use, such as `avx2`, `fma`, `dotprod`."""
    if target.kind.name != "llvm":
        return frozenset()
    return frozenset(str(feature) for feature in codegen.llvm_get_cpu_features(target))
