"""The instructions that kernels are written for stand in the code that LLVM makes for each kind of CPU."""

import re

import pytest
from tvm.target import Target

from hwpq_tvm.schedules import registry

from .. import reference
from .assembly import assembly

# Instruction set -> target, instructions of every linear on packed integers, those of the 2:4 ones beside them.
INTEGERS = {
    "avx512vnni": (reference.AVX512, {"vpdpbusd"}, {"vpshufb"}),
    "avx2": (reference.AVX2, {"vpmaddubsw", "vpmaddwd"}, {"vpshufb"}),
    "neon_dotprod": (reference.NEON, {"sdot"}, {"tbl"}),
    "any": (reference.PORTABLE, set(), set()),
}
# Registers that these instructions have to work on.
WIDEST = {"avx512vnni": "%zmm", "avx2": "%ymm"}
# Registers that have no place in the code.
TOO_WIDE = {"avx512vnni": (), "avx2": ("%zmm",), "neon_dotprod": (), "any": ("%ymm", "%zmm")}
LABELS = ["sparse24_int8", "dense_int8", "sparse24_int4.g64", "dense_int4.g32"]


def assembly_of(label: str, lead: tuple, target: Target) -> tuple[str, str]:
    """Code of a linear's kernel, and the kernel's name."""
    func, choice = registry.schedule(reference.BY_LABEL[label].linear(lead, 64, 256), target)
    return assembly(func, target), choice.kernel


def instructions(code: str, register: str = "") -> set[str]:
    """Names of the instructions, those that name a register of a kind."""
    names = re.findall(rf"^\s+([a-z]\w*).*{register}", code, re.MULTILINE)
    # The digits of a fused multiply-add say which operand is overwritten.
    return {re.sub(r"^(vfn?madd)\d+", r"\1", name) for name in names}


@pytest.mark.parametrize(("lead", "kind"), [((1, 1), "gemv"), ((1, "seq_len"), "gemm")], ids=["gemv", "gemm"])
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("isa", INTEGERS)
def test_linears_on_packed_integers(isa: str, label: str, lead: tuple, kind: str) -> None:
    target, always, sparse = INTEGERS[isa]
    code, kernel = assembly_of(label, lead, target)
    assert kernel == f"{isa}.{label}.{kind}"
    wanted = always | (sparse if label.startswith("sparse24") else set())
    if isa == "avx2" and "int8" in label:
        wanted |= {"vpsignb"}
    assert wanted <= instructions(code, WIDEST.get(isa, ""))
    assert not any(register in code for register in TOO_WIDE[isa])
    found = instructions(code)
    others = set().union(*(a | b for name, (_, a, b) in INTEGERS.items() if name != isa))
    if isa != "avx512vnni":  # which is free to use what AVX2 has
        assert not found & (others - always - sparse)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (reference.AVX512, {"vcvtph2ps", "vfmaddps"}),
        (reference.AVX2, {"vcvtph2ps", "vfmaddps"}),
        (reference.NEON, {"fcvtl", "fmla"}),
    ],
    ids=["avx512vnni", "avx2", "neon_dotprod"],
)
def test_linears_on_float16(target: Target, expected: set[str]) -> None:
    code, _ = assembly_of("dense_float16", (1, 1), target)
    assert expected <= instructions(code)
