"""A static performance model: what a kernel moves and computes, against what a device is sold with.

Nothing here was measured. A kernel's time is predicted as that of the resource that it needs longest (a roofline), with
three corrections: memory is only as fast as the bytes that are under way at a time allow (Little's law), work that
doesn't divide evenly is as slow as the multiprocessor that has most, and filling pipelines and launching cost time.
It ranks candidates; that is all that its numbers are for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hwpq_tvm.schedules.cuda.devices import Device
from hwpq_tvm.schedules.cuda.occupancy import WARP, Occupancy, occupancy

# Assumed: the part of the DRAM bandwidth that streaming reaches, and the seconds from the end of a kernel to the first
# instruction of the next one in its stream.
DRAM_SHARE = 0.92
LAUNCH = 2.0e-6
# Assumed: chains of dependent `mma` that a multiprocessor needs to keep its tensor cores busy, two for each quarter.
MMA_CHAINS = 8
# Of a multiprocessor, in a clock: bytes from the second-level cache, bytes of shared memory, instructions of warps.
L2_PORT = 64
SHARED_PORT = 128
ISSUE = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What the kernels of one call do, counted from their parameters.

    Attributes
    ----------
    name
        Kind and size in a word or two.
    kernel
        Kind and parameters in a line.
    blocks, threads
        Of the main launch.
    registers
        Of a thread: estimated, or ptxas's figure.
    shared_bytes
        Of a block.
    moved
        Bytes that must come from or go to DRAM, by what they are.
    l2_bytes
        Bytes between multiprocessors and the second-level cache, by all blocks.
    streamed
        Bytes of weights, with all that is stored with them, that a block reads.
    in_flight
        Those of them that it has asked for and not got yet, while it streams.
    shared_traffic
        Bytes that all blocks write to and read from shared memory.
    instructions
        Instructions of all warps, roughly.
    operations
        On tensor cores, padding and the zeros of 2:4 weights counted.
    multiplied
        What tensor cores multiply; empty for a kernel on CUDA cores.
    sparse, wgmma
        Which of their instructions.
    chains
        `mma` of a warp that don't wait for each other.
    launches
        Kernels that run one after another.
    partials
        Bytes of partial sums of split in_features, which stay in the second-level cache (part of `l2_bytes`).
    token_tiles
        Parts of the tokens, each of which meets all weights.
    """

    name: str
    kernel: str
    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    moved: Mapping[str, int]
    l2_bytes: int
    streamed: int
    in_flight: int
    shared_traffic: int
    instructions: int
    operations: int = 0
    multiplied: str = ""
    sparse: bool = False
    wgmma: bool = False
    chains: int = 1
    launches: int = 1
    partials: int = 0
    token_tiles: int = 1

    @property
    def moved_bytes(self) -> int:
        """Bytes that must come from or go to DRAM."""
        return sum(self.moved.values())


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted time of a kernel, and how it comes about.

    Attributes
    ----------
    work, device
        What was predicted, for what.
    occupancy
        Blocks that share a multiprocessor.
    waves
        Rounds of blocks; the last one may be half empty.
    busy_sms
        Multiprocessors with work.
    bytes_in_flight
        Of all blocks that run at a time.
    seconds
        Predicted seconds by resource: "DRAM", "memory latency", "L2", "tensor cores", "shared memory", "instructions".
    ramp
        Predicted seconds to fill and drain the pipelines.
    launch
        Assumed seconds of the launches.
    """

    work: Work
    device: Device
    occupancy: Occupancy
    waves: int
    busy_sms: int
    bytes_in_flight: int
    seconds: Mapping[str, float]
    ramp: float
    launch: float

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def microseconds(self) -> float:
        """Predicted time."""
        return 1e6 * (self.seconds[self.bound] + self.ramp + self.launch)

    @property
    def floor(self) -> float:
        """Microseconds that the bytes alone would take at the datasheet's bandwidth."""
        return 1e6 * self.work.moved_bytes / self.device.dram_bandwidth

    def summary(self, tokens: int) -> str:
        """The prediction, which was made for a number of tokens, in a line."""
        at = f"{tokens} tokens" if tokens > 1 else "1 token"
        return (
            f"predicted {self.microseconds:.1f} us at {at}: bound by {self.bound}, "
            f"{self.busy_sms} of {self.device.sms} SMs have work, {self.work.moved_bytes / 1e6:.2f} MB would take "
            f"{self.floor:.1f} us ({self.device.name})"
        )

    def working(self) -> str:
        """The prediction with all that went into it, in lines."""
        work, device, held = self.work, self.device, self.occupancy
        moved = ", ".join(f"{name} {size / 1e6:.3f}" for name, size in work.moved.items() if size)
        lines = [
            f"{work.kernel}: everything below is predicted for {device.name} ({device.source})",
            f"blocks: {work.blocks} of {work.threads} threads; {held.blocks} share an SM ({held.warps} warps, "
            f"{held.fraction:.0%}, limited by {held.limit}): {self.waves} wave(s), {self.busy_sms} of {device.sms} SMs "
            "have work",
            f"of a block: {work.shared_bytes} bytes of shared memory, about {work.registers} registers a thread",
            f"bytes from and to DRAM: {work.moved_bytes / 1e6:.3f} MB ({moved}): {self.floor:.2f} us at "
            f"{device.dram_bandwidth / 1e9:.0f} GB/s",
            f"bytes in flight: {self.bytes_in_flight} of {device.bytes_needed_in_flight:.0f} needed "
            f"({device.latency * 1e9:.0f} ns of latency, assumed, x {device.dram_bandwidth / 1e9:.0f} GB/s)",
        ]
        if work.operations:
            rate = device.tensor_rate(work.multiplied, sparse=work.sparse, wgmma=work.wgmma)
            lines.append(
                f"tensor cores: {work.operations / 1e9:.3f} G operations {work.multiplied}"
                f"{' 2:4' if work.sparse else ''} at {rate / 1e12:.0f} T/s at most"
            )
        lines.append("predicted us: " + ", ".join(f"{name} {1e6 * time:.2f}" for name, time in self.seconds.items()))
        lines.append(
            f"predicted time: {self.microseconds:.2f} us = {self.bound} {1e6 * self.seconds[self.bound]:.2f} + filling "
            f"and draining {1e6 * self.ramp:.2f} + {work.launches} launch(es) {1e6 * self.launch:.2f} (assumed)"
        )
        return "\n".join(lines)


def predict(work: Work, device: Device) -> Prediction | None:
    """Predict the time of a kernel.

    Returns
    -------
    Prediction or None
        None when a block doesn't fit on a multiprocessor.
    """
    held = occupancy(device.architecture, work.threads, work.registers, work.shared_bytes)
    if not held.blocks:
        return None
    at_a_time = min(work.blocks, held.blocks * device.sms)
    waves = -(-work.blocks // (held.blocks * device.sms))
    in_flight = at_a_time * work.in_flight
    of_busiest = -(-work.blocks // device.sms)
    # What the busiest multiprocessor does, as a part of all the work, and the warps it has at a time.
    busiest = of_busiest / work.blocks
    warps = min(held.blocks, of_busiest) * work.threads // WARP
    seconds = {
        "DRAM": _dram_bytes(work, device, at_a_time) / _dram_rate(device, in_flight),
        # A block gets what it has asked for once in a latency.
        "memory latency": waves * device.latency * work.streamed / work.in_flight,
        "L2": work.l2_bytes * max(1 / device.l2_bandwidth, busiest / (L2_PORT * device.clock)),
        "shared memory": work.shared_traffic * busiest / (SHARED_PORT * device.clock),
        # Few warps wait for their own results.
        "instructions": work.instructions * busiest / (ISSUE * device.clock * min(1.0, warps / (2 * ISSUE))),
    }
    if work.operations:
        rate = device.tensor_rate(work.multiplied, sparse=work.sparse, wgmma=work.wgmma) / device.sms
        seconds["tensor cores"] = work.operations * busiest / (rate * min(1.0, warps * work.chains / MMA_CHAINS))
    return Prediction(
        work=work,
        device=device,
        occupancy=held,
        waves=waves,
        busy_sms=min(work.blocks, device.sms),
        bytes_in_flight=in_flight,
        seconds=seconds,
        # The first data of a launch, and the last stores.
        ramp=2 * work.launches * device.latency,
        launch=work.launches * LAUNCH,
    )


def _dram_rate(device: Device, in_flight: int) -> float:
    """Bytes per second: what is under way allows, bending to what streaming reaches (assumed: as a fourth power)."""
    enough = in_flight / device.bytes_needed_in_flight
    return DRAM_SHARE * device.dram_bandwidth * enough / (1 + enough**4) ** 0.25


def _dram_bytes(work: Work, device: Device, at_a_time: int) -> int:
    """Bytes from and to DRAM: activations that don't fit in the second-level cache come anew for later row tiles.

    Blocks start with the token tiles of a row tile, so that weights come once.
    """
    row_tiles = work.blocks // work.token_tiles
    again = 0
    if work.moved["activations"] > device.l2_bytes:
        again = work.moved["activations"] * (-(-row_tiles // max(1, at_a_time // work.token_tiles)) - 1)
    return work.moved_bytes + again
