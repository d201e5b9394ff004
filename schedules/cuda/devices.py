"""A reference device of each architecture, with its datasheet's figures: what the performance model computes with.

A target says only an architecture, so the times that are predicted for it are those of one device that has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tvm.target import Target

from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES, Architecture, architecture_of


@dataclass(frozen=True, slots=True)
class Device:
    """Figures of a device.

    Attributes
    ----------
    name
        As it is sold.
    architecture
        Its architecture.
    sms
        Streaming multiprocessors.
    clock
        Boost clock in Hz.
    dram_bandwidth, l2_bandwidth
        Bytes per second. Datasheets have the first; the second is assumed, near what microbenchmarks report.
    l2_bytes
        Size of the second-level cache.
    dense_rates
        Tensor-core operations per second by what is multiplied ("int8"; "float16" and "float8_e4m3fn" summed in
        float32); a multiplication with its addition is two. With a 2:4 operand twice as many, counting the zeros.
    mma_share
        Part of these that `mma` instructions reach; the rest is `wgmma`'s.
    latency_cycles
        Clocks from a load to its data from DRAM on an idle device.
    source
        Where the figures are from.
    """

    name: str
    architecture: Architecture
    sms: int
    clock: float
    dram_bandwidth: float
    l2_bandwidth: float
    l2_bytes: int
    dense_rates: Mapping[str, float] = field(hash=False)
    mma_share: float
    latency_cycles: float
    source: str

    @property
    def latency(self) -> float:
        """Seconds from a load to its data on a device that is busy: assumed to be half as long again as when idle."""
        return 1.5 * self.latency_cycles / self.clock

    @property
    def bytes_needed_in_flight(self) -> float:
        """Bytes that must be under way at any time to use the whole DRAM bandwidth (Little's law)."""
        return self.latency * self.dram_bandwidth

    def tensor_rate(self, dtype: str, *, sparse: bool, wgmma: bool = False) -> float:
        """Operations per second that tensor cores do, zeros of a 2:4 operand counted."""
        return self.dense_rates[dtype] * (2 if sparse else 1) * (1.0 if wgmma else self.mma_share)


# Latencies, and the share of `mma` on the H100: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture", arXiv 2402.13499 (that of sm_86 is taken to be sm_89's, in clocks).
_A100 = Device(
    name="A100 SXM 40GB",
    architecture=ARCHITECTURES["sm_80"],
    sms=108,
    clock=1.41e9,
    dram_bandwidth=1555e9,
    l2_bandwidth=4.5e12,
    l2_bytes=40 << 20,
    dense_rates={"int8": 624e12, "float16": 312e12},
    mma_share=1.0,
    latency_cycles=466,
    source="NVIDIA A100 Tensor Core GPU datasheet and architecture whitepaper",
)
DEVICES: tuple[Device, ...] = (
    _A100,
    replace(_A100, name="A100 SXM 80GB", dram_bandwidth=2039e9),
    Device(
        name="GeForce RTX 3090",
        architecture=ARCHITECTURES["sm_86"],
        sms=82,
        clock=1.695e9,
        dram_bandwidth=936e9,
        l2_bandwidth=2.2e12,
        l2_bytes=6 << 20,
        dense_rates={"int8": 284e12, "float16": 71e12},
        mma_share=1.0,
        latency_cycles=541,
        source="NVIDIA Ampere GA102 GPU architecture whitepaper, appendix A",
    ),
    Device(
        name="GeForce RTX 4090",
        architecture=ARCHITECTURES["sm_89"],
        sms=128,
        clock=2.52e9,
        dram_bandwidth=1008e9,
        l2_bandwidth=4.5e12,
        l2_bytes=72 << 20,
        dense_rates={"int8": 660.6e12, "float16": 165.2e12, "float8_e4m3fn": 330.3e12},
        mma_share=1.0,
        latency_cycles=541,
        source="NVIDIA Ada GPU architecture whitepaper, appendix A",
    ),
    Device(
        name="H100 SXM5 80GB",
        architecture=ARCHITECTURES["sm_90a"],
        sms=132,
        clock=1.83e9,
        dram_bandwidth=3350e9,
        l2_bandwidth=5.5e12,
        l2_bytes=50 << 20,
        dense_rates={"int8": 1979e12, "float16": 989.5e12, "float8_e4m3fn": 1979e12},
        mma_share=0.62,
        latency_cycles=479,
        source="NVIDIA H100 Tensor Core GPU datasheet (its rates are at 1.83 GHz)",
    ),
)


def reference_device(target: Target) -> Device:
    """Find the device that times are predicted for: the first one in the list with the target's architecture.

    Raises
    ------
    TargetError
        When kernels aren't generated for the architecture.
    """
    architecture = architecture_of(target)
    return next(device for device in DEVICES if device.architecture == architecture)
