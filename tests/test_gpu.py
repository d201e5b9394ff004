"""The driver that tells which GPUs there are, and the rules by which device code runs on them."""

import ctypes
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hwpq_tvm import gpu
from hwpq_tvm.gpu import GPU, Driver, capability_of, find_gpus, how_it_runs, too_old, why_not_run
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES


class FakeDriver:
    """The calls of libcuda that are used, on GPUs that a test makes up: (name, major, minor, bytes)."""

    def __init__(self, gpus, version=13000, init=0):
        self.gpus, self.version, self.init = gpus, version, init

    def cuDriverGetVersion(self, out):
        out._obj.value = self.version
        return 0

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, out):
        out._obj.value = len(self.gpus)
        return 0

    def cuGetErrorName(self, code, out):
        out._obj.value = b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" if code == 803 else None
        return 0 if code == 803 else 1

    def cuDeviceGet(self, out, index):
        out._obj.value = 100 + index  # a handle, not the index
        return 0

    def cuDeviceGetAttribute(self, out, attribute, device):
        _, major, minor, _, shared_bytes = self.gpus[device.value - 100]
        out._obj.value = {75: major, 76: minor, 97: shared_bytes}[attribute]
        return 0

    def cuDeviceGetName(self, out, length, device):
        out.value = self.gpus[device.value - 100][0].encode()
        return 0

    def cuDeviceTotalMem_v2(self, out, device):
        out._obj.value = self.gpus[device.value - 100][3]
        return 0


def install(monkeypatch, driver):
    monkeypatch.setattr(gpu, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": lambda name: driver}))


def test_gpus_are_found_in_the_drivers_order(monkeypatch):
    install(
        monkeypatch, FakeDriver([("A100", 8, 0, 40 << 30, 166912), ("H100", 9, 0, 80 << 30, 232448)], version=12040)
    )
    driver = find_gpus()
    assert driver.cuda_version == (12, 4)
    assert driver.gpus == (
        GPU(0, "A100", (8, 0), 40 << 30, 166912),
        GPU(1, "H100", (9, 0), 80 << 30, 232448),
    )
    assert driver.problem is None


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (FakeDriver([]), "the driver finds no GPU"),
        (FakeDriver([], init=100), "the driver finds no GPU"),
        (FakeDriver([], init=803), "the driver fails (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)"),
        (FakeDriver([], init=999), "the driver fails (error 999)"),
    ],
)
def test_what_is_wrong_with_a_driver_is_told(monkeypatch, driver, problem):
    install(monkeypatch, driver)
    found = find_gpus()
    assert (found.cuda_version, found.gpus, found.problem) == ((13, 0), (), problem)


def test_no_driver(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(gpu, "ctypes", SimpleNamespace(CDLL=absent))
    assert find_gpus() == gpu.Driver(None, (), "there is no NVIDIA driver (libcuda.so.1)")


def test_names_stand_for_capabilities():
    assert capability_of("sm_80") == (8, 0)
    assert capability_of("sm_90a") == (9, 0)
    assert capability_of("sm_120") == (12, 0)
    for name in ("sm80", "sm_8", "compute_80", "sm_80x", ""):
        with pytest.raises(ValueError, match="no name of an architecture"):
            capability_of(name)


@pytest.mark.parametrize(
    ("architecture", "capability", "how"),
    [
        ("sm_80", (8, 0), "binary"),
        ("sm_80", (8, 9), "binary"),
        ("sm_86", (8, 0), None),
        ("sm_80", (8, 7), "ptx"),  # a Jetson board
        ("sm_86", (8, 7), "ptx"),
        ("sm_89", (8, 7), None),
        ("sm_80", (9, 0), "ptx"),
        ("sm_89", (12, 0), "ptx"),
        ("sm_90a", (9, 0), "binary"),
        ("sm_90a", (10, 3), "ptx"),
        ("sm_90a", (8, 9), None),
        ("sm_80", (7, 5), None),
    ],
)
def test_how_device_code_runs(architecture, capability, how):
    assert how_it_runs(architecture, capability) == how


def test_the_oldest_gpu_is_that_of_the_oldest_architecture():
    oldest = min(map(capability_of, ARCHITECTURES))
    assert too_old(GPU(0, "a GPU", oldest, 1)) is None
    before = too_old(GPU(0, "T4", (oldest[0] - 1, 5), 1))
    assert before == ('T4 has compute capability 7.5: kernels need 8.0 or more. Use another GPU, or the target "cpu".')


@pytest.mark.parametrize(
    ("architecture", "capability", "driver", "compiler", "why"),
    [
        ("sm_80", (8, 9), (13, 0), (13, 5), None),
        ("sm_80", (8, 9), None, (13, 5), None),
        ("sm_80", (9, 0), (13, 4), (13, 4), None),
        ("sm_80", (7, 5), (13, 5), (13, 5), "kernels need 8.0 or more. Use another GPU"),
        (
            "sm_90a",
            (8, 9),
            (13, 5),
            (13, 5),
            "code for sm_90a needs compute capability 9.0 or more, and a GPU has 8.9.",
        ),
        ("sm_80", (8, 0), (12, 9), (13, 5), "supports CUDA 12.9, and 13.0 or more is needed. Update the driver."),
        ("sm_80", (8, 7), (13, 0), (13, 5), "and 13.5 or more is needed to compile the PTX of sm_80 for a GPU. Update"),
        ("sm_80", (9, 0), (13, 2), (13, 5), "Update the driver, or build the model with nvcc 13.2."),
    ],
)
def test_why_device_code_does_not_run(architecture, capability, driver, compiler, why):
    gpu = GPU(0, "a GPU", capability, 1)
    found = why_not_run(architecture, gpu, Driver(driver, (gpu,), None), compiler)
    assert found is None if why is None else why in found


def test_shared_memory_that_a_gpu_lacks():
    """Binaries of sm_80 load on any GPU of capability 8.x, and then the first large kernel would fail."""
    small = GPU(0, "RTX 3090", (8, 6), 1, 99 << 10)
    driver = Driver((13, 0), (small,), None)
    assert why_not_run("sm_80", small, driver, (13, 0), 99 << 10) is None
    found = why_not_run("sm_80", small, driver, (13, 0), 133120)
    assert "takes 130 KB of shared memory, and RTX 3090 gives a block 99 KB" in found
    assert why_not_run("sm_80", replace(small, shared_bytes=None), driver, (13, 0), 133120) is None
