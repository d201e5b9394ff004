"""AArch64, by Unicorn."""

from typing import Any

import numpy as np
import unicorn
from unicorn import arm64_const

from .machine import BASE, IMPORTS, PAGE, SECONDS, SIZE, IllegalInstruction, Machine

# CPU models: one with everything that Unicorn knows, and one from before the dot product.
MODELS = {"recent": arm64_const.UC_CPU_ARM64_MAX, "older": arm64_const.UC_CPU_ARM64_A72}


def run(kernel: bytes, *arguments: np.ndarray | int, model: str = "recent") -> None:
    """Call the function of an object file, as `Machine.run` does."""
    AArch64(model).run(kernel, *arguments)


class AArch64(Machine):
    """A core of a CPU model of `MODELS`."""

    ARGUMENTS = tuple(f"x{i}" for i in range(8))
    RESULT = "x0"

    def __init__(self, model: str) -> None:
        super().__init__()
        self._uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._uc.ctl_set_cpu_model(MODELS[model])
        self._uc.mem_map_ptr(BASE, SIZE, unicorn.UC_PROT_ALL, self.memory.host_address)
        self._uc.hook_add(unicorn.UC_HOOK_CODE, _stop, begin=IMPORTS, end=IMPORTS + PAGE - 1)

    def get(self, register: str) -> int:
        return self._uc.reg_read(_register(register))

    def set(self, register: str, value: int) -> None:
        self._uc.reg_write(_register(register), value)

    def resume(self) -> None:
        try:
            self._uc.emu_start(self.get("pc"), BASE + SIZE, timeout=SECONDS * 1_000_000)
        except unicorn.UcError as error:
            if error.errno in (unicorn.UC_ERR_INSN_INVALID, unicorn.UC_ERR_EXCEPTION):
                raise IllegalInstruction(self.memory.read(self.get("pc"), 4)) from None
            raise AssertionError(f"{error} at {self.get('pc'):#x}") from error

    def set_return_address(self, address: int) -> None:
        self.set("x30", address)

    def take_return_address(self) -> int:
        return self.get("x30")


def _register(name: str) -> int:
    return getattr(arm64_const, f"UC_ARM64_REG_{name.upper()}")


def _stop(uc: Any, address: int, size: int, data: object) -> None:
    uc.emu_stop()
