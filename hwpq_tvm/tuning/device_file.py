"""device.json, beside the records of a device: what it is, and under which conditions its kernels were measured."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .device_info import DeviceInfo
from .record_files import replace

DEVICE = "device.json"


def read_device(folder: Path) -> tuple[DeviceInfo, list[Any]]:
    """Read the device of a database, and the conditions of its measurements.

    Raises
    ------
    ConfigError
        When device.json is missing or damaged, so that nothing is known of the device.
    """
    path = folder / DEVICE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: nothing says which device the records are of.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read ({error}): nothing says which device the records are of.") from error
    device, conditions = (value.get(name) if isinstance(value, dict) else None for name in ("device", "conditions"))
    try:
        return DeviceInfo.from_json(json.dumps(device)), conditions if isinstance(conditions, list) else []
    except ConfigError as error:
        raise ConfigError(f"{path} {error}.") from error


def write_device(folder: Path, info: DeviceInfo, conditions: Sequence[Any]) -> None:
    """Write device.json.

    Raises
    ------
    OSError
        When it can't be written.
    """
    distinct = [each for number, each in enumerate(conditions) if each not in conditions[:number]]
    replace(folder / DEVICE, json.dumps({"device": asdict(info), "conditions": distinct}, indent=2) + "\n")
