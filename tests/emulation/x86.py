"""x86-64 with AVX-512, by Bochs: in a process of its own, which Bochs ends badly."""

import ctypes
import importlib.util
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from .machine import BASE, IMPORTS, PAGE, SECONDS, SIZE, IllegalInstruction, Machine

# CPU models: one with VNNI, Ice Lake, and one without, Skylake-X. Name -> Bochs' function that makes it.
MODELS = {
    "recent": "_Z29create_corei7_icelake_u_cpuidP8BX_CPU_C",
    "older": "_Z29create_corei7_skylake_x_cpuidP8BX_CPU_C",
}
# An instruction that is none (ud2), at which Bochs stops, and the exception that it raises.
_INVALID, _INVALID_OPCODE = b"\x0f\x0b", 6
_LARGE_PAGE = 1 << 21
_PRESENT_WRITABLE_USER, _LARGE = 7, 0x80
# CR4: the operating system saves SSE and extended states; XCR0: which ones (x87, SSE, AVX, AVX-512).
_CR4_STATES = 1 << 9 | 1 << 10 | 1 << 18
_XCR0 = 0b11100111
_MXCSR = 0x1F80


def _load(model: str) -> ModuleType:
    """Load Bochs behind the shim, for a model of CPU."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "bochs_shim.so"
        source = Path(__file__).with_name("bochs_shim.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        shim = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import bochscpu.cpu
    import bochscpu.memory

    create = getattr(ctypes.CDLL(bochscpu._bochscpu.__file__), MODELS[model])
    ctypes.c_void_p.in_dll(shim, "cpu_model").value = ctypes.cast(create, ctypes.c_void_p).value
    return bochscpu


class X86(Machine):
    """The core of a CPU model of `MODELS`; a process can have one."""

    ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
    RESULT = "rax"

    def __init__(self, model: str) -> None:
        super().__init__()
        bochs = _load(model)
        self._session = bochs.Session()
        for offset in range(0, SIZE, PAGE):
            bochs.memory.page_insert(BASE + offset, self.memory.host_address + offset)
        self._state = bochs.State()
        bochs.cpu.set_long_mode(self._state)
        self._state.cr3 = self._page_tables()
        self._state.cr4 |= _CR4_STATES
        self._state.xcr0 = _XCR0
        self._state.mxcsr, self._state.mxcsr_mask = _MXCSR, 0xFFFF
        self._state.cs = _segment(bochs, 0x33, 0x22FB)
        for name in ("ds", "ss", "es", "fs", "gs"):
            setattr(self._state, name, _segment(bochs, 0x2B, 0xCF3))
        self.memory.write(IMPORTS, _INVALID * (PAGE // len(_INVALID)))
        self._exception = 0
        self._hook = bochs.Hook()
        self._hook.exception = self._note_exception

    def get(self, register: str) -> int:
        return getattr(self._state, _NAMES.get(register, register))

    def set(self, register: str, value: int) -> None:
        setattr(self._state, _NAMES.get(register, register), value)

    def resume(self) -> None:
        self._session.cpu.state = self._state
        self._session.run([self._hook])
        self._state = self._session.cpu.state
        if not IMPORTS <= self.get("pc") < IMPORTS + PAGE:
            if self._exception == _INVALID_OPCODE:
                raise IllegalInstruction(self.memory.read(self.get("pc"), 6))
            raise AssertionError(f"exception {self._exception} at {self.get('pc'):#x}")

    def set_return_address(self, address: int) -> None:
        self.set("sp", self.get("sp") - 8)
        self.memory.write(self.get("sp"), struct.pack("<Q", address))

    def take_return_address(self) -> int:
        (address,) = struct.unpack("<Q", self.memory.read(self.get("sp"), 8))
        self.set("sp", self.get("sp") + 8)
        return address

    def _note_exception(self, session: object, cpu: int, vector: int, code: int) -> None:
        self._exception = vector
        session.stop()

    def _page_tables(self) -> int:
        """Map the memory, and nothing else, to itself; returns the address of the table of tables."""
        root, second, third = (self.memory.allocate(PAGE, PAGE) for _ in range(3))
        self.memory.write(root, struct.pack("<Q", second | _PRESENT_WRITABLE_USER))
        self.memory.write(second, struct.pack("<Q", third | _PRESENT_WRITABLE_USER))
        for address in range(BASE, BASE + SIZE, _LARGE_PAGE):
            entry = struct.pack("<Q", address | _LARGE | _PRESENT_WRITABLE_USER)
            self.memory.write(third + 8 * (address // _LARGE_PAGE), entry)
        return root


_NAMES = {"pc": "rip", "sp": "rsp"}


def _segment(bochs: ModuleType, selector: int, attributes: int) -> object:
    segment = bochs.Segment()
    segment.present, segment.selector, segment.base, segment.limit = True, selector, 0, 0xFFFFFFFF
    segment.attr = attributes
    return segment


def missing() -> str | None:
    """What Bochs lacks here to run, in a word."""
    if importlib.util.find_spec("bochscpu") is None:
        return "bochscpu-python is not installed"
    return None if shutil.which("cc") else "there is no C compiler"


def run(kernel: bytes, *arguments: np.ndarray | int, model: str = "recent") -> None:
    """Call the function of an object file, as `Machine.run` does."""
    worker = subprocess.run(
        [sys.executable, "-m", "tests.emulation.x86"],
        input=pickle.dumps((model, kernel, arguments)),
        capture_output=True,
        timeout=SECONDS,
        cwd=Path(__file__).parents[2],
    )
    assert worker.returncode == 0, worker.stderr.decode()
    answer = pickle.loads(worker.stdout)
    if isinstance(answer, Exception):
        raise answer
    for argument, found in zip(arguments, answer, strict=True):
        if isinstance(argument, np.ndarray) and argument.flags.writeable:
            argument[...] = found


def _work() -> None:
    """Answer the request on the standard input."""
    # Whatever Bochs prints goes elsewhere than the answer.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    model, kernel, arguments = pickle.load(sys.stdin.buffer)
    try:
        X86(model).run(kernel, *arguments)
        answer = arguments
    except (AssertionError, IllegalInstruction) as error:
        answer = error
    with output:
        pickle.dump(answer, output)
    os._exit(0)


if __name__ == "__main__":
    _work()
