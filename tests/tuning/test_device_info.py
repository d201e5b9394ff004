"""What devices are told apart by, and whose records a target may use."""

from dataclasses import replace

import pytest

from hwpq_tvm.cpu import architecture, host_cores
from hwpq_tvm.errors import ConfigError, TargetError
from hwpq_tvm.gpu import GPU, Driver
from hwpq_tvm.schedules.version import KERNELS_VERSION
from hwpq_tvm.targets import cpu_features, resolve_target
from hwpq_tvm.tuning import device_info
from hwpq_tvm.tuning.device_info import DeviceInfo, applies, kernel_features, this_device
from hwpq_tvm.versions import installed_version

A100 = DeviceInfo("gpu", "NVIDIA A100-SXM4-40GB", "sm_80", "", (), None, None, installed_version("apache-tvm"), 1)


def of(word: str, **fields) -> DeviceInfo:
    """A device with the CPU of a target."""
    target = resolve_target(word)
    info = DeviceInfo(
        kind="cpu",
        name="Some CPU",
        architecture=device_info.architecture_name(target),
        mcpu=device_info.mcpu_of(target),
        features=kernel_features(target),
        cores=2,
        cache_bytes=None,
        tvm_version=installed_version("apache-tvm"),
        kernels_version=1,
    )
    return replace(info, **fields)


def test_this_cpu_is_described_and_its_records_apply():
    target = resolve_target("cpu")
    info = this_device(target)
    assert (info.kind, info.architecture, info.cores) == ("cpu", architecture(), host_cores())
    assert info.mcpu == target.attrs["mcpu"] and set(info.features) <= cpu_features(target)
    assert info.measured and info.kernels_version == KERNELS_VERSION
    assert applies(info, target) is None
    assert DeviceInfo.from_json(info.to_json()) == info


def test_a_cpu_with_another_cache_is_another_device():
    target = resolve_target("cpu")
    info = this_device(target)
    other = replace(info, cache_bytes=(info.cache_bytes or 0) + (3 << 20))
    assert "last-level cache" in applies(other, target)
    assert other.slug != info.slug and other.slug.endswith(f"-{other.cache_bytes >> 20}mib")


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"features": 3}', of("cpu").to_json().replace('"cpu"', "1")])
def test_damaged_descriptions_are_told(text):
    with pytest.raises(ConfigError, match="describes no device"):
        DeviceInfo.from_json(text)


def test_folders_tell_kinds_apart():
    assert of("cpu:cascadelake").slug == "x86_64-cascadelake"
    assert of("cpu:x86-64-v4-vnni").slug == "x86_64-x86-64-v4-with-avx512vnni"
    # A hypervisor that hides an instruction makes it another kind.
    hidden = tuple(each for each in of("cpu:cascadelake").features if each != "avx512vnni")
    assert of("cpu:cascadelake", features=hidden).slug == "x86_64-cascadelake-without-avx512vnni"
    assert of("cpu:neoverse-n1").slug == "aarch64-neoverse-n1"
    assert A100.slug == "sm_80-nvidia-a100-sxm4-40gb"
    assert replace(A100, measured=False).slug == "sm_80-nvidia-a100-sxm4-40gb-predicted"


@pytest.mark.parametrize("word", ["cpu", "cpu:x86-64-v3", "cpu:x86-64-v4-vnni", "cpu:aarch64", "cpu:neoverse-n1"])
def test_what_was_tuned_for_a_target_is_found_for_it(word):
    assert applies(of(word), resolve_target(word)) is None


@pytest.mark.parametrize(
    ("info", "word", "reason"),
    [
        (of("cpu:cascadelake"), "cpu:znver4", "they are of cascadelake, and the target is znver4"),
        (of("cpu:neoverse-n1"), "cpu:cascadelake", "they are of aarch64, and the target is x86_64"),
        (of("cpu:cascadelake"), "cuda:sm_80", "they are of a CPU"),
        (A100, "cpu", "they are of a GPU"),
        (A100, "cuda:sm_86", "they are of sm_80, and the target is sm_86"),
        (of("cpu:x86-64-v4"), "cpu:x86-64-v4-vnni", "only the target has avx512vnni"),
        (of("cpu:x86-64-v4-vnni"), "cpu:x86-64-v4", "only their device has avx512vnni"),
        (of("cpu:x86-64-v3", tvm_version="0.28.1"), "cpu:x86-64-v3", "they are of TVM 0.28.1, and this is"),
    ],
)
def test_records_of_other_devices_do_not_apply(info, word, reason):
    assert reason in applies(info, resolve_target(word))


def test_other_tvm_of_the_same_minor_version_applies():
    assert applies(of("cpu:x86-64-v3", tvm_version="0.27.9"), resolve_target("cpu:x86-64-v3")) is None


def test_a_gpu_that_is_here_wants_its_own_records(monkeypatch):
    assert applies(A100, resolve_target("cuda:sm_80")) is None
    for name, fits in (("NVIDIA A100-SXM4-40GB", True), ("NVIDIA A30", False)):
        driver = Driver((13, 0), (GPU(0, name, (8, 0), 2**34),), None)
        monkeypatch.setattr(device_info, "find_gpus", lambda driver=driver: driver)
        assert (applies(A100, resolve_target("cuda:sm_80")) is None) == fits
        assert applies(replace(A100, name="a model", measured=False), resolve_target("cuda:sm_80")) is None
        info = this_device(resolve_target("cuda:sm_80"))
        assert (info.kind, info.name, info.architecture) == ("gpu", name, "sm_80")
        with pytest.raises(TargetError, match="its GPU is no sm_86"):
            this_device(resolve_target("cuda:sm_86"))


def test_targets_of_other_machines_are_not_measured_here(monkeypatch):
    other = "cpu:aarch64" if architecture() == "x86_64" else "cpu:x86-64-v3"
    with pytest.raises(TargetError, match="can't be measured on this machine, which is"):
        this_device(resolve_target(other))
    monkeypatch.setattr(device_info, "missing_features", lambda features: ("avx512vnni",))
    with pytest.raises(TargetError, match="this CPU, which lacks avx512vnni"):
        this_device(resolve_target("cpu"))
    monkeypatch.setattr(device_info, "find_gpus", lambda: Driver(None, (), "there is no driver"))
    with pytest.raises(TargetError, match=r"cuda:sm_80 can't be measured on this machine: there is no driver"):
        this_device(resolve_target("cuda:sm_80"))


@pytest.mark.parametrize(
    ("cpuinfo", "board", "name"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC 7763\n", None, "AMD EPYC 7763"),
        ("processor : 0\nFeatures : asimd\n", "Raspberry Pi 5 Model B Rev 1.0\0", "Raspberry Pi 5 Model B Rev 1.0"),
        ("processor : 0\n", None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_cpus_and_boards_have_names(tmp_path, monkeypatch, cpuinfo, board, name):
    for variable, text in (("_CPUINFO", cpuinfo), ("_BOARD", board)):
        path = tmp_path / variable
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(device_info, variable, path)
    assert device_info._cpu_name() == name
