"""Times for a GPU that is not there, as a static model predicts them.

Nothing is built and nothing is measured, so records of such times are marked as predicted and lose to any measured one.
"""

from collections.abc import Sequence
from math import inf

from tvm.target import Target

from ..errors import TargetError
from ..schedules.cuda import space
from ..schedules.cuda.architectures import architecture_of
from ..schedules.cuda.devices import reference_device
from ..schedules.cuda.work import Linear
from ..schedules.linear_workload import LinearWorkload
from ..schedules.parameters import Parameters
from ..schedules.version import KERNELS_VERSION
from ..versions import installed_version
from .device_info import DeviceInfo, this_device


def check_device(target: Target, device: str, *, predict: bool) -> None:
    """Raise TargetError where there is nothing to tune on, or where nothing can be predicted.

    Parameters
    ----------
    target
        What is tuned for.
    device
        "local", or where devices are asked for.
    predict
        Whether times are predicted rather than measured.
    """
    if predict and target.kind.name != "cuda":
        raise TargetError(
            f"target of kind {target.kind.name!r} with predict: times are predicted for GPUs only; tune without it on "
            "such a CPU, or over RPC."
        )
    if predict or target.kind.name != "cuda" or device != "local":
        return
    try:
        this_device(target)
    except TargetError as error:
        raise TargetError(
            f"{error} Tune on a machine with that GPU, over RPC, or ask for predicted times (--predict): records of "
            "those are marked as predicted, and measured ones always win over them."
        ) from error


def predicted_device(target: Target) -> DeviceInfo:
    """Describe the device that times are predicted for: the reference device of the target's architecture."""
    return DeviceInfo(
        kind="gpu",
        name=reference_device(target).name,
        architecture=architecture_of(target).name,
        mcpu="",
        features=(),
        cores=None,
        cache_bytes=None,
        tvm_version=installed_version("apache-tvm"),
        kernels_version=KERNELS_VERSION,
        measured=False,
    )


def predict_points(workload: LinearWorkload, target: Target, points: Sequence[Parameters]) -> list[float]:
    """Predict the time of each point.

    Parameters
    ----------
    workload
        A linear on a tensor-core layout.
    target
        A GPU; times are those of the reference device of its architecture.
    points
        Parameters of the workload's kernels.

    Returns
    -------
    list of float
        Seconds; infinity for a point that does not fit the device.
    """
    linear = Linear(workload.weight_format, workload.N, workload.K, workload.group_size)
    device = reference_device(target)

    def seconds(point: Parameters) -> float:
        assert isinstance(point, space.Parameters), f"{point} is for CPUs"
        found = space.choice(linear, device, workload.M, point)
        return inf if found is None else found.prediction.microseconds * 1e-6

    return list(map(seconds, points))
