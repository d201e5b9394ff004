"""Parameters of linears on GPUs: every choice fits, and what is chosen by predicted time makes sense."""

from dataclasses import replace
from itertools import pairwise

import pytest

from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules.cuda import space as spaces
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES, architecture_of
from hwpq_tvm.schedules.cuda.devices import reference_device
from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.report import RIVALS, predicted, predicted_times
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.cuda.work import Linear
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.layouts import mma
from hwpq_tvm.schedules.linear_mma import linear_mma
from hwpq_tvm.targets import resolve_target

TARGETS = {name: resolve_target(f"cuda:{name}") for name in ("sm_80", "sm_86", "sm_89", "sm_90a")}
SHAPES = [(576, 1536), (208, 136), (16, 64), (49152, 576)]


def formats(arch: str) -> list[tuple[str, int | None]]:
    """Layouts that an architecture multiplies, with group sizes."""
    layouts = mma.by_source(float8=architecture_of(TARGETS[arch]).float8)
    return [
        *((name, None) for source, name in layouts.items() if not source.endswith("int4")),
        ("mma_sparse24_int4", 64),
        ("mma_dense_int4", 32),
        ("mma_dense_int8", 128),
    ]


def kernel(name: str, lead: tuple, N: int, K: int, group_size: int | None = None) -> dict:
    return description(linear_mma(name, lead, N, K, group_size))


def why_not(point: spaces.Parameters, fields: dict, arch: str, tokens: int) -> str | None:
    if isinstance(point, GemvParameters):
        return point.why_not(fields["weight_format"], fields["K"], tokens)
    return point.why_not(fields["weight_format"], fields["N"], fields["K"], fields.get("group_size"), arch)


@pytest.mark.parametrize("arch", TARGETS)
def test_plans_are_valid_and_have_few_kernels(arch: str) -> None:
    for name, group_size in formats(arch):
        for N, K in SHAPES:
            fields = kernel(name, (1, "seq_len"), N, K, group_size)
            plan = spaces.default(fields, TARGETS[arch])
            assert 2 <= len(plan) <= spaces.MOST_KERNELS
            (few, gemv), *others = plan
            assert few == 4
            assert isinstance(gemv, GemvParameters)
            assert plan[-1][0] is None
            limits = [most for most, _ in plan[:-1]]
            assert limits == sorted(set(limits)) and set(limits) <= set(spaces.BUCKETS)
            assert all(one[1] != other[1] for one, other in pairwise(plan))
            for most, point in plan:
                assert why_not(point, fields, arch, most or spaces.LARGE) is None
            assert not any(isinstance(point, GemvParameters) for _, point in others)
            if "float8" in name and arch == "sm_90a":
                assert all(isinstance(point, WgmmaParameters) for _, point in others)


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("tokens", [1, 16, 200])
def test_every_point_fits_and_the_default_is_first(arch: str, tokens: int) -> None:
    kinds = {GemvParameters} if tokens == 1 else {MmaParameters}
    kinds |= {WgmmaParameters} if tokens > 4 and arch == "sm_90a" else set()
    fields = kernel("mma_sparse24_int8", (1, tokens), 576, 1536)
    points = spaces.space(fields, TARGETS[arch], tokens)
    assert len(set(points)) == len(points) > 30
    assert {type(point) for point in points} == kinds
    assert spaces.default(fields, TARGETS[arch]) == ((None, points[0]),)
    assert all(why_not(point, fields, arch, tokens) is None for point in points)


def test_no_point_is_predicted_to_be_much_faster_than_the_default() -> None:
    """The few candidates of the default against the whole space."""
    for arch, tokens in (("sm_80", 16), ("sm_89", 256)):
        device = reference_device(TARGETS[arch])
        linear = Linear("mma_sparse24_int8", 1536, 1536)
        fields = kernel(linear.name, (1, tokens), linear.N, linear.K)
        points = spaces.space(fields, TARGETS[arch], tokens)
        found = [spaces.choice(linear, device, tokens, point) for point in points[::7]]
        fastest = min(each.prediction.microseconds for each in found if each)
        assert spaces.best(linear, device, tokens).prediction.microseconds < 1.1 * fastest


def test_the_choice_is_stable() -> None:
    linear, device = Linear("mma_sparse24_int8", 4096, 4096), reference_device(TARGETS["sm_80"])
    first = spaces.ranges(linear, device)
    for cached in (spaces.best, spaces.ranges, spaces._shared_by):
        cached.cache_clear()
    assert spaces.ranges(linear, device) == first


def test_every_multiprocessor_has_work_for_a_few_tokens() -> None:
    """Where the number of tokens isn't known, too, and what is lost by sharing kernels stays small."""
    linear, device = Linear("mma_sparse24_int8", 4096, 4096), reference_device(TARGETS["sm_80"])
    plan = spaces.ranges(linear, device)
    for tokens in (8, 16, 32):
        parameters = next(point for most, point in plan if most is None or most >= tokens)
        found = spaces.choice(linear, device, tokens, parameters)
        assert found is not None
        assert found.prediction.busy_sms == device.sms
        alone = spaces.best(linear, device, tokens).prediction.microseconds
        assert found.prediction.microseconds <= 1.05 * alone


def test_weights_that_no_kernel_indexes_are_refused() -> None:
    fields = kernel("mma_dense_float16", (1, "seq_len"), 262144, 8192)
    with pytest.raises(UnsupportedSchemeError, match=r"262144 x 8192 .* sm_80: weights of 2 GB and more .* Choose"):
        spaces.default(fields, TARGETS["sm_80"])


def test_what_is_said_when_nothing_fits(monkeypatch) -> None:
    """The reason is the device's where it isn't the weight's size."""
    linear, device = Linear("mma_sparse24_int4", 64, 128, 128), reference_device(TARGETS["sm_80"])
    for tokens, model, reason in (
        (16, replace(device, architecture=replace(device.architecture, shared_memory_per_sm=1024)), "takes more"),
        (16, device, "sm_80 has 100"),
        (1, replace(device, architecture=replace(device.architecture, threads_per_sm=16)), "takes more"),
    ):
        with monkeypatch.context() as patch:
            if reason.startswith("sm_80"):
                small = replace(device.architecture, shared_memory_per_block=100)
                patch.setitem(ARCHITECTURES, "sm_80", small)
            spaces.best.cache_clear()
            with pytest.raises(UnsupportedSchemeError, match=rf"64 x 128 .* sm_80: .*{reason}.* Choose"):
                spaces.best(linear, model, tokens)
    spaces.best.cache_clear()


def test_in_features_are_split_where_rows_are_few() -> None:
    for N, K, split in ((64, 16384, True), (16384, 512, False)):
        ((_, point),) = spaces.default(kernel("mma_sparse24_int8", (1, 16), N, K), TARGETS["sm_80"])
        assert (point.k_splits > 1) == split


@pytest.mark.parametrize("arch", TARGETS)
def test_formats_are_compared_by_predicted_time(arch: str) -> None:
    decode = predicted_times(4096, 4096, TARGETS[arch], 1)
    assert list(decode.values()) == sorted(decode.values())
    assert len(decode) == len(RIVALS) == 8
    # At one token bytes are all that counts: 2:4 beats dense of its dtype, and fewer bits beat more.
    for dtype in ("int8", "int4.g64", "float16", "float8"):
        assert decode[f"sparse24_{dtype}"] < decode[f"dense_{dtype}"]
    assert decode["dense_int4.g64"] < decode["dense_int8"] < decode["dense_float16"]
    # A small layer takes as long as a launch, whatever its format.
    small = predicted_times(64, 64, TARGETS[arch], 1)
    assert max(small.values()) < 1.1 * min(small.values())


def test_a_format_in_which_no_kernel_takes_the_layer_is_left_out() -> None:
    """Weights of 2 GB and more: the head of a large model in float16, whose own format is a smaller one."""
    times = predicted_times(152064, 8192, TARGETS["sm_80"], 16)
    assert "dense_float16" not in times
    assert len(times) == len(RIVALS) - 1


def test_what_a_report_says() -> None:
    value = predicted(kernel("mma_dense_int8", (1, "seq_len"), 576, 1536), TARGETS["sm_86"])
    assert value["device"] == "GeForce RTX 3090"
    assert value["kernels"][0]["max_tokens"] == 4
    assert value["kernels"][-1]["max_tokens"] is None
    for each in value["kernels"]:
        assert each["why"].startswith(f"predicted {each['predicted_us']:.1f} us at ")
        assert f"bound by {each['bound']}" in each["why"]
    assert set(value["predicted_us_by_format"]) == {"16", "256"}
    ((one,),) = [predicted(kernel("mma_dense_int8", (1, 3), 576, 1536), TARGETS["sm_86"])["kernels"]]
    assert (one["max_tokens"], one["kernel"]) == (3, "gemv")
    assert "at 3 tokens" in one["why"]


def test_a_report_on_kernels_by_records_is_on_their_parameters() -> None:
    described = kernel("mma_dense_int8", (1, "seq_len"), 576, 1536)
    device = reference_device(TARGETS["sm_86"])
    too_large = MmaParameters(8, 4, 256, stages=8, steps_per_stage=8)
    plan = ((4, GemvParameters(1, 1, 1)), (16, too_large), (None, MmaParameters(2, 1, 8, stages=2)))
    value = predicted(described, TARGETS["sm_86"], plan)
    assert [each["max_tokens"] for each in value["kernels"]] == [4, None]
    for each, (most, parameters) in zip(value["kernels"], (plan[0], plan[2]), strict=True):
        found = spaces.choice(Linear.of(described), device, most or spaces.LARGE, parameters)
        assert found is not None
        assert each["parameters"] == found.prediction.work.kernel
        assert each["predicted_us"] == round(found.prediction.microseconds, 2)
