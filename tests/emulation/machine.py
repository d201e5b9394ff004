"""What the emulators share: memory, and calls of compiled kernels by the calling convention of TVM's FFI.

A kernel is an object file that TVM wrote. It is linked into memory that emulator and test share, and its arguments are
tensors there. The few functions of TVM's runtime and of the C library that it may call are played by Python: each is
an address at which the emulator stops.
"""

import ctypes
import mmap
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from .elf import link

BASE, SIZE = 0x200000, 0x1000000
PAGE = 0x1000
# The first page: addresses of functions that Python plays.
IMPORTS, IMPORT_BYTES = BASE, 16
STACK_BYTES = 0x100000
# After so long a kernel is thought to hang.
SECONDS = 60
_RETURN = "return to the caller"
# Kinds of arguments of TVM's FFI, and its number for memory of the CPU.
_INTEGER, _DLTENSOR, _CPU = 1, 7, 1
_KINDS = {"i": 0, "u": 1, "f": 2}


class IllegalInstruction(Exception):
    """The CPU does not know an instruction; the argument is its first bytes."""


class Memory:
    """Memory of an emulated CPU, at the addresses BASE .. BASE + SIZE; what is taken is never given back."""

    def __init__(self) -> None:
        self._mapping = mmap.mmap(-1, SIZE)
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self._end = IMPORTS + PAGE

    def allocate(self, size: int, alignment: int = 64) -> int:
        """Take some bytes, which are zeros; returns their address."""
        start = -(-self._end // alignment) * alignment
        self._end = start + size
        assert self._end <= BASE + SIZE
        return start

    def place(self, data: bytes, alignment: int = 64) -> int:
        """Take memory for some bytes and write them there."""
        address = self.allocate(len(data), alignment)
        self.write(address, data)
        return address

    def write(self, address: int, data: bytes) -> None:
        self._mapping[address - BASE : address - BASE + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        return self._mapping[address - BASE : address - BASE + size]

    def read_string(self, address: int) -> str:
        start = address - BASE
        return self._mapping[start : self._mapping.find(b"\0", start)].decode()


class Machine(ABC):
    """One core of some CPU."""

    # Names of the registers that hold a call's arguments.
    ARGUMENTS: ClassVar[Sequence[str]]
    RESULT: ClassVar[str]

    def __init__(self) -> None:
        self.memory = Memory()
        self._imports = [_RETURN]
        self._stack = self.memory.allocate(STACK_BYTES) + STACK_BYTES
        # TVMParallelGroupEnv: a handle for synchronisation, and the number of tasks.
        self._one_task = self.memory.place(struct.pack("<Qi4x", 0, 1))

    @abstractmethod
    def get(self, register: str) -> int:
        """Read a register; "pc" and "sp" are two on every CPU."""

    @abstractmethod
    def set(self, register: str, value: int) -> None:
        """Write a register."""

    @abstractmethod
    def resume(self) -> None:
        """Run up to an address in the page IMPORTS; raise IllegalInstruction where an instruction is unknown."""

    @abstractmethod
    def set_return_address(self, address: int) -> None:
        """Put the return address where a function that is about to be entered finds it."""

    @abstractmethod
    def take_return_address(self) -> int:
        """Take back the return address of the function that was just entered."""

    def run(self, kernel: bytes, *arguments: np.ndarray | int) -> None:
        """Call the function `main` of an object file; arrays that can be written receive what it wrote."""
        # The linked code is smaller than the object, which holds tables for the linker and the debugger too.
        image = link(kernel, self.memory.allocate(len(kernel), PAGE), self._import_address)
        assert len(image.data) <= len(kernel)
        self.memory.write(image.base, image.data)
        for name, address in image.symbols.items():
            if name.startswith("__TVM"):  # a pointer to a function, for the loader to fill
                self.memory.write(address, struct.pack("<Q", self._import_address(name.removeprefix("__"))))
        placed = [self._argument(value) for value in arguments]
        self.set("sp", self._stack)
        self.set_return_address(self._import_address(_RETURN))
        where, result = self.memory.place(b"".join(packed for packed, _ in placed)), self.memory.allocate(16)
        self._enter(image.symbols["__tvm_ffi_main"], (0, where, len(arguments), result))
        self.resume()
        while (name := self._entered()) != _RETURN:
            self._serve(name)
            self.resume()
        assert self.get(self.RESULT) & 0xFFFFFFFF == 0
        for value, (_, address) in zip(arguments, placed, strict=True):
            if isinstance(value, np.ndarray) and value.flags.writeable:
                found = np.frombuffer(self.memory.read(address, value.nbytes), value.dtype)
                value[...] = found.reshape(value.shape)

    def _argument(self, value: np.ndarray | int) -> tuple[bytes, int]:
        """Place an argument; returns its TVMFFIAny, and where the elements of an array lie."""
        if isinstance(value, int):
            return struct.pack("<iiq", _INTEGER, 0, value), 0
        data = self.memory.place(value.tobytes())
        shape = self.memory.place(struct.pack(f"<{value.ndim}q", *value.shape))
        dtype = struct.pack("<BBH", _KINDS[value.dtype.kind], 8 * value.dtype.itemsize, 1)
        fields = struct.pack("<Qiii4sQQQ", data, _CPU, 0, value.ndim, dtype, shape, 0, 0)
        return struct.pack("<iiQ", _DLTENSOR, 0, self.memory.place(fields)), data

    def _import_address(self, name: str) -> int:
        if name not in self._imports:
            self._imports.append(name)
        return IMPORTS + IMPORT_BYTES * self._imports.index(name)

    def _enter(self, function: int, arguments: Sequence[int]) -> None:
        for register, value in zip(self.ARGUMENTS, arguments, strict=False):
            self.set(register, value)
        self.set("pc", function)

    def _entered(self) -> str:
        """Name of the function at which the machine stopped."""
        offset = self.get("pc") - IMPORTS
        assert 0 <= offset < IMPORT_BYTES * len(self._imports), (
            f"the kernel did not end, but stopped at {self.get('pc'):#x}"
        )
        return self._imports[offset // IMPORT_BYTES]

    def _serve(self, name: str) -> None:
        """Play a function of TVM's runtime or of the C library that was just entered."""
        arguments = [self.get(register) for register in self.ARGUMENTS]
        if name == "TVMBackendParallelLaunch":
            # One task does everything, in the place of the function that starts tasks.
            self._enter(arguments[0], (0, self._one_task, arguments[1]))
            return
        if name == "TVMBackendAllocWorkspace":
            # Bytes that no kernel expects (NaN, -1), so that reading what was never written shows.
            result = self.memory.place(b"\xff" * arguments[2])
        elif name == "TVMBackendFreeWorkspace":
            result = 0
        elif name in ("memcpy", "memmove"):
            result, source, size = arguments[:3]
            self.memory.write(result, self.memory.read(source, size))
        elif name == "memset":
            result, value, size = arguments[:3]
            self.memory.write(result, bytes([value & 0xFF]) * size)
        elif name == "TVMFFIErrorSetRaisedFromCStrParts":
            parts = struct.unpack(f"<{arguments[2]}Q", self.memory.read(arguments[1], 8 * arguments[2]))
            raise AssertionError("".join(map(self.memory.read_string, (arguments[0], *parts))))
        else:
            raise AssertionError(f"a kernel calls {name}")
        self.set(self.RESULT, result)
        self.set("pc", self.take_return_address())
