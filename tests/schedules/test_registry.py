import itertools

import pytest
import tvm
import tvm_ffi

from hwpq_tvm.errors import ConfigError, UnsupportedSchemeError
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.compress import contribution
from hwpq_tvm.schedules.cpu.linear_space import GemmParameters
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES, architecture_of
from hwpq_tvm.schedules.kernel_attr import KERNEL_ATTR, describe, description
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS
from hwpq_tvm.scheme import DTYPES, GROUP_SIZES, METRICS, WHOLE_CHANNEL, LayerScheme
from hwpq_tvm.targets import cpu_features, resolve_target

from . import reference


def test_every_format_has_a_kernel_on_every_cpu() -> None:
    for weights in WEIGHT_FORMATS:
        for kind in registry.KINDS:
            key = registry.KernelKey(
                "any", weights.sparsity, weights.dtype, weights.activation_dtype, weights.group_size, kind
            )
            assert key in registry.KERNELS
    assert {key.isa for key in registry.KERNELS} == {*registry.ISAS, *ARCHITECTURES, registry.SIMT}
    assert registry.ISAS["any"] == frozenset()
    assert registry.ISAS["avx2"] <= cpu_features(reference.AVX2)


@pytest.mark.parametrize("weights", WEIGHT_FORMATS, ids=lambda weights: weights.label)
def test_every_format_is_found_by_its_scheme(weights) -> None:
    asked = {"sparsity": weights.sparsity, "dtype": weights.dtype, "group_size": weights.group_size}
    activations = "float" if weights.activation_dtype == "float32" else "int8"
    assert registry.weight_format(**asked, activations=activations) is weights
    if weights.dtype.startswith("float"):
        assert registry.weight_format(**asked) is weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_scheme_has_a_format_and_a_kernel_on_every_gpu(architecture: str) -> None:
    target = resolve_target(f"cuda:{architecture}")
    for host in WEIGHT_FORMATS:
        asked = {"sparsity": host.sparsity, "dtype": host.dtype, "group_size": host.group_size, "target": target}
        found = registry.weight_format(**asked)
        assert (found.sparsity, found.dtype, found.group_size) == (host.sparsity, host.dtype, host.group_size)
        assert (found.activation_dtype == "float32") == (host.dtype == "float32")
        if host.dtype == "float8_e4m3fn":
            native = architecture in ("sm_89", "sm_90a")
            assert found.activation_dtype == ("float8_e4m3fn" if native else "float16")
        if host.dtype.startswith("int") and host.activation_dtype == "float32":
            assert registry.weight_format(**asked, activations="float") is host
        for kind in registry.KINDS:
            isa = registry.SIMT if found.activation_dtype == "float32" else architecture
            key = (isa, found.sparsity, found.dtype, found.activation_dtype, found.group_size, kind)
            assert registry.KernelKey(*key) in registry.KERNELS
        # What compression writes is the same whatever the target.
        assert found.source == registry.weight_format(**{**asked, "target": None})


def test_what_runs_on_no_gpu_is_refused() -> None:
    func = registry.weight_format(sparsity=None, dtype="int8").compress(8, 64, selection=None)
    with pytest.raises(UnsupportedSchemeError, match=r"compress.*CPUs only"):
        registry.schedule(func, resolve_target("cuda:sm_80"))


def test_sparsity_without_a_format_is_stored_dense() -> None:
    dense = registry.weight_format(sparsity=None, dtype="int4", group_size=64)
    for sparsity in ("1:4", "4:8", 0.5):
        assert registry.weight_format(sparsity=sparsity, dtype="int4", group_size=64) is dense
    assert registry.weight_format(sparsity=None, dtype="int8", group_size=-1).group_size is None


@pytest.mark.parametrize(
    ("sparsity", "dtype", "group_size"),
    [("2:4", "float32", None), ("2:4", "int4", 16), (None, "float16", 64), (None, "int3", None)],
)
def test_a_scheme_without_kernel_is_refused(sparsity: str | None, dtype: str, group_size: int | None) -> None:
    with pytest.raises(UnsupportedSchemeError) as error:
        registry.weight_format(sparsity=sparsity, dtype=dtype, group_size=group_size)
    assert f"{sparsity or 'dense'} {dtype}" in str(error.value)
    assert "2:4 int8, 2:4 int4, 2:4 float8_e4m3fn, 2:4 float16, dense int8" in str(error.value)
    assert "32, 64, 128" in str(error.value)


def test_a_function_without_description_is_scheduled_generically() -> None:
    func = registry.weight_format(sparsity=None, dtype="int8").embedding((1, 1), 8, 64)
    assert func is not None
    assert description(func) == {"op": "embedding", "weight_format": "dense_int8", "lead": [1, 1], "N": 8, "K": 64}
    _, choice = registry.schedule(func.without_attr(KERNEL_ATTR), reference.AVX2)
    assert choice == registry.ScheduleChoice("generic", "generic")
    assert description(func.without_attr(KERNEL_ATTR)) is None
    assert description(describe(func, op="x", scale=0.5, flag=True)) == {"op": "x", "scale": 0.5, "flag": True}


def test_an_unknown_instruction_set_falls_back_and_says_so() -> None:
    func = registry.weight_format(sparsity="2:4", dtype="int8").linear((1, 1), 8, 64)
    _, choice = registry.schedule(func, reference.PORTABLE)
    assert choice == registry.ScheduleChoice("any.sparse24_int8.gemv", "portable")


@pytest.mark.parametrize(
    ("target", "isa", "quality"),
    [
        ("cpu:x86-64-v2", "any", "portable"),
        ("cpu:x86-64-v3", "avx2", "default"),
        ("cpu:x86-64-v4", "avx2", "default"),
        ("cpu:skylake-avx512", "avx2", "default"),
        ("cpu:x86-64-v4-vnni", "avx512vnni", "default"),
        ("cpu:cascadelake", "avx512vnni", "default"),
        ("cpu:aarch64", "neon_dotprod", "default"),
        ("cpu:neoverse-n1", "neon_dotprod", "default"),
        ("cpu:cortex-a72", "any", "portable"),
    ],
)
def test_a_cpu_gets_the_best_kernel_that_it_can_run(target: str, isa: str, quality: str) -> None:
    func = registry.weight_format(sparsity="2:4", dtype="int4", group_size=64).linear((1, 1), 8, 64)
    _, choice = registry.schedule(func, resolve_target(target, threads=2))
    assert choice == registry.ScheduleChoice(f"{isa}.sparse24_int4.g64.gemv", quality)


def test_a_group_size_has_a_kernel_of_its_own() -> None:
    func = registry.weight_format(sparsity="2:4", dtype="int8", group_size=64).linear((1, "seq_len"), 8, 64)
    assert description(func)["group_size"] == 64
    _, choice = registry.schedule(func, reference.AVX2)
    assert choice == registry.ScheduleChoice("avx2.sparse24_int8.g64.gemm", "default")


@pytest.mark.parametrize("word", ["cpu:x86-64-v4-vnni", "cpu:x86-64-v3", "cpu:aarch64", "cpu:x86-64", "cuda:sm_89"])
@pytest.mark.parametrize("tokens", [1, 4, 64])
def test_the_default_is_the_first_point_of_the_space(word: str, tokens: int) -> None:
    target = resolve_target(word, threads=2)
    weights = registry.weight_format(sparsity=None, dtype="int4", group_size=32, target=target)
    workload = LinearWorkload.of(weights.linear((1, tokens), 128, 512))
    points = registry.space(workload, target)
    assert len(points) == len(set(points)) > 1
    by_default, choice = registry.schedule(workload.func(), target)
    tvm.ir.assert_structural_equal(registry.schedule_point(workload, target, points[0]), by_default)
    tuned, again = registry.schedule(workload.func(), target, ((None, points[-1]),))
    assert not tvm_ffi.structural_equal(tuned.body, by_default.body)
    tuned_as = {"default": "tuned", "portable": "portable, tuned"}
    assert again == registry.ScheduleChoice(choice.kernel, tuned_as[choice.schedule])


def test_a_kernel_without_parameters_has_no_space() -> None:
    for sparsity, dtype in ((None, "float16"), ("2:4", "float16"), (None, "float32")):
        func = registry.weight_format(sparsity=sparsity, dtype=dtype).linear((1, 4), 64, 256)
        for target in (reference.AVX2, resolve_target("cuda:sm_80", threads=2)):
            assert registry.space(LinearWorkload.of(func), target) == []
        with pytest.raises(AssertionError, match="no parameters"):
            registry.schedule(func, reference.AVX2, ((None, GemmParameters(8, 1, 4, 0)),))
    on_gpu = registry.weight_format(sparsity="2:4", dtype="int8", target=resolve_target("cuda:sm_80"))
    with pytest.raises(UnsupportedSchemeError, match="no kernel for a gemm with mma_sparse24_int8"):
        registry.space(LinearWorkload.of(on_gpu.linear((1, 4), 64, 256)), reference.AVX2)


def test_ranges_with_equal_parameters_are_one() -> None:
    func = registry.weight_format(sparsity="2:4", dtype="int8").linear((1, "seq_len"), 64, 256)
    few, many = GemmParameters(4, 1, 4, 0), GemmParameters(8, 1, 4, 0)
    for plan, same in (
        (((4, few), (16, few), (64, few), (None, few)), ((None, few),)),
        (((4, few), (16, many), (64, many), (None, few)), ((4, few), (64, many), (None, few))),
    ):
        found, expected = (registry.schedule(func, reference.AVX2, each)[0] for each in (plan, same))
        tvm.ir.assert_structural_equal(found, expected)


@pytest.mark.parametrize("word", ["cpu", "cuda:sm_80", "cuda:sm_89"])
def test_every_2_4_format_has_a_dense_rival_with_the_same_numbers(word: str) -> None:
    target = resolve_target(word, threads=2)
    on_gpu = target.kind.name == "cuda"
    for weights in registry.tensor_core_formats(architecture_of(target)) if on_gpu else WEIGHT_FORMATS:
        other = registry.rival(weights, target)
        if not weights.packs:
            assert other is None
            continue
        assert other is not None and (other.sparsity is None) == (weights.sparsity == "2:4")
        same = [(each.dtype, each.group_size, each.activation_dtype) for each in (weights, other)]
        assert same[0] == same[1]
        assert registry.rival(other, target) == weights


def test_whatever_a_scheme_may_ask_for_has_a_format():
    for sparsity, dtype, size in itertools.product((None, "2:4"), DTYPES, (None, *GROUP_SIZES, WHOLE_CHANNEL)):
        try:
            scheme = LayerScheme(sparsity, dtype, group_size=size)
        except ConfigError:
            continue
        found = registry.weight_format(sparsity=sparsity, dtype=dtype, group_size=scheme.group)
        assert (found.sparsity, found.dtype, found.group_size) == (sparsity, dtype, scheme.group)
    assert set(contribution.METRICS) == set(METRICS)
