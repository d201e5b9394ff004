"""Where the time of a step goes: every call that the virtual machine makes, timed from within.

The machine calls a function before and after each call. What that costs is measured too, and taken out: the shortest
time between two such callbacks is what lies between them when nothing happens, and the time of the whole step comes
from steps without callbacks, which alternate with the others. Kernels and step being known, the rest is the machine's.
"""

import ctypes
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import numpy as np

from ..vm_callbacks import own_errors
from .compiled_model import CompiledModel
from .tvm_runtime import runtime

Part = Literal["linears", "attention", "other kernels", "virtual machine"]
PARTS: tuple[Part, ...] = ("linears", "attention", "other kernels", "virtual machine")

# TVM's own names: what allocates, checks shapes, makes tuples and the like.
_BUILTIN = "vm."


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the virtual machine.

    Parameters
    ----------
    name
        Function that is called: a kernel, or one of the machine's own.
    part
        "linears" read weight matrices, "attention" reads or writes the KV cache.
    weight_bytes
        Bytes of the weights among its arguments, for a linear.
    weight
        Name of the first weight among its arguments, for a linear; empty for others.
    begin, end
        Which of the callbacks came before and after it.
    """

    name: str
    part: Part
    weight_bytes: int
    weight: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class FunctionTime:
    """Calls of one function in a step, together.

    Parameters
    ----------
    name, part
        As in `Call`.
    calls
        How many.
    seconds
        Median over the steps, without callbacks and without the calls that the function makes itself.
    weight_bytes
        Bytes of weights that a step reads in them.
    """

    name: str
    part: Part
    calls: int
    seconds: float
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of a step goes.

    Parameters
    ----------
    step_seconds
        Median of the steps without callbacks.
    functions
        What was called, the longest first.
    linears
        Name of the weight -> median of the seconds that a step spends in linears of it; layers that are packed together
        have one weight, such as "a.q_proj+k_proj.weight".
    entry_seconds
        Until the first call and after the last one, median: arguments on their way to the entry function and back.
    callback_seconds
        What one callback cost, and was taken out.
    repeat
        Steps with callbacks, and as many without.
    """

    step_seconds: float
    functions: tuple[FunctionTime, ...]
    linears: Mapping[str, float]
    entry_seconds: float
    callback_seconds: float
    repeat: int

    def part_seconds(self, part: Part) -> float:
        """Seconds of a part; the virtual machine's are what the kernels leave of the step, allocation included."""
        kernels = {
            name: sum(function.seconds for function in self.functions if function.part == name) for name in PARTS[:-1]
        }
        return self.step_seconds - sum(kernels.values()) if part == PARTS[-1] else kernels[part]

    def to_json(self) -> dict[str, Any]:
        """The figures as a JSON value; times in seconds of one step."""
        return {
            "step_seconds": self.step_seconds,
            "parts": {part: self.part_seconds(part) for part in PARTS},
            "entry_seconds": self.entry_seconds,
            "callback_seconds": self.callback_seconds,
            "repeat": self.repeat,
            "functions": [
                {
                    "name": function.name,
                    "part": function.part,
                    "calls": function.calls,
                    "seconds": function.seconds,
                    "weight_bytes": function.weight_bytes,
                }
                for function in self.functions
            ],
            "linears": dict(self.linears),
        }


def recorded(model: CompiledModel, step: Callable[[], object]) -> list[Call]:
    """What the virtual machine of `model` calls while `step` runs.

    Nothing else may run on `model` meanwhile: its calls would be taken for the step's.

    Raises
    ------
    Whatever `step` raises.
    """
    weights, names = model.weight_addresses, model.weight_names
    cache_shape = model.manifest.generation.kv_cache_shape if model.manifest.generation else None
    calls: list[Call | None] = []
    open_calls: list[tuple[int, int]] = []  # place in `calls`, number of the callback
    callbacks = 0

    def note(_callee: Any, name: str, before: bool, _result: Any, *arguments: Any) -> None:
        nonlocal callbacks
        if before:
            open_calls.append((len(calls), callbacks))
            calls.append(None)
        else:
            place, begin = open_calls.pop()
            # What makes calls itself is no kernel, and its time is not its own.
            kernel = len(calls) == place + 1 and not name.startswith(_BUILTIN)
            part, read = _kernel_part(arguments, weights, cache_shape) if kernel else (PARTS[-1], [])
            weight = names[read[0]] if read else ""
            calls[place] = Call(name, part, sum(weights[each] for each in read), weight, begin, callbacks)
        callbacks += 1

    with own_errors() as noting:
        model.machine.instrument(runtime().convert(noting(note)))
        try:
            step()
        finally:
            model.machine.instrument(None)
    return [call for call in calls if call]


def profile(model: CompiledModel, step: Callable[[], object], *, repeat: int = 20) -> Profile:
    """Time what the virtual machine of `model` calls in a step.

    Nothing else may run on `model` meanwhile: its calls would be taken for the step's.

    Parameters
    ----------
    model
        A compiled model.
    step
        Runs the same step each time, such as one `decode` at the same length of the sequence.
    repeat
        Steps with callbacks, and as many without, in turns; one of either goes before.

    Returns
    -------
    Profile
        Medians over the steps.

    Raises
    ------
    Whatever `step` raises.
    """
    calls = recorded(model, step)
    plain: list[float] = []
    entry: list[float] = []
    stamps: list[list[int]] = []
    for turn in range(repeat + 1):
        start = time.perf_counter()
        step()
        middle = time.perf_counter()
        begin, stamped, end = _stamped(model, step)
        if turn:
            plain.append(middle - start)
            entry.append(1e-9 * (end - begin - (stamped[-1] - stamped[0])))
            stamps.append(stamped)
    # [step, callback], in seconds since the first callback of the step.
    times = 1e-9 * np.array([np.array(step) - step[0] for step in stamps])
    callback = float(np.median(np.diff(times), axis=0).min())
    functions: dict[tuple[str, Part], list[tuple[Call, np.ndarray]]] = {}
    linears: dict[str, list[np.ndarray]] = {}
    for call, seconds in zip(calls, _own_seconds(calls, times, callback), strict=True):
        functions.setdefault((call.name, call.part), []).append((call, seconds))
        if call.weight:
            linears.setdefault(call.weight, []).append(seconds)
    results = [
        FunctionTime(
            name,
            part,
            len(group),
            _median_sum([seconds for _, seconds in group]),
            sum(call.weight_bytes for call, _ in group),
        )
        for (name, part), group in functions.items()
    ]
    return Profile(
        step_seconds=statistics.median(plain),
        functions=tuple(sorted(results, key=lambda function: -function.seconds)),
        linears={weight: _median_sum(spans) for weight, spans in linears.items()},
        entry_seconds=max(statistics.median(entry) - callback, 0.0),
        callback_seconds=callback,
        repeat=repeat,
    )


def _median_sum(spans: list[np.ndarray]) -> float:
    """Median over the steps of what several calls took together."""
    return float(np.median(sum(spans)))


def _own_seconds(calls: list[Call], times: np.ndarray, callback: float) -> list[np.ndarray]:
    """Seconds of each call in every step, without callbacks and without the calls that it makes itself."""
    # Every callback between the two of a call costs as well, when the call made calls itself.
    spans = [times[:, call.end] - times[:, call.begin] - (call.end - call.begin) * callback for call in calls]
    own = [span.copy() for span in spans]
    enclosing: list[int] = []
    for place, call in enumerate(calls):  # in the order in which they begin
        while enclosing and calls[enclosing[-1]].end < call.begin:
            enclosing.pop()
        if enclosing:
            own[enclosing[-1]] -= spans[place]
        enclosing.append(place)
    return own


def _kernel_part(
    arguments: tuple[Any, ...], weights: Mapping[int, int], cache_shape: tuple[int, ...] | None
) -> tuple[Part, list[int]]:
    """The part that a kernel belongs to, and where the weights lie that a linear reads."""
    tensors = [argument for argument in arguments if hasattr(argument, "__dlpack__")]
    if any(tuple(tensor.shape) == cache_shape for tensor in tensors):
        return "attention", []
    read = [tensor for tensor in tensors if tensor.data_ptr() in weights]
    # Rows that ids choose are no product: an embedding.
    ids = any(str(tensor.dtype) == "int64" for tensor in tensors)
    if ids or all(len(tensor.shape) < 2 for tensor in read):
        return "other kernels", []
    return "linears", [tensor.data_ptr() for tensor in read]


_SAFE_CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)


def _stamped(model: CompiledModel, step: Callable[[], object]) -> tuple[int, list[int], int]:
    """Nanoseconds of the clock before a step, at each callback in it, and after it."""
    stamps: list[int] = []
    failures: list[BaseException] = []
    clock = time.perf_counter_ns
    # What a GPU does comes after the call that starts it: only when it is waited for does its time fall between the
    # two callbacks.
    wait = model.device.synchronize if model.device.copies else None

    # Called as C, with the arguments where they are: making Python objects of them would take longer than kernels do.
    def stamp(_self: int, _arguments: int, _count: int, _result: int) -> int:
        # After an exception, ctypes would go on with an undefined result, which TVM may take for a failure and crash.
        try:
            if wait is not None:
                wait()
            stamps.append(clock())
        except BaseException as error:
            failures.append(error)
        return 0

    called = _SAFE_CALL(stamp)
    address = ctypes.cast(called, ctypes.c_void_p).value
    model.machine.instrument(runtime().core.Function.__from_extern_c__(address, keep_alive_object=called))
    try:
        with _interruption_afterwards():
            begin = clock()
            step()
            end = clock()
    finally:
        model.machine.instrument(None)
    if failures:
        raise failures[0]
    return begin, stamps, end


@contextmanager
def _interruption_afterwards() -> Iterator[None]:
    """Let an interruption by the user wait: it would come up as a callback begins, too early for a ``try`` in it."""
    usual = signal.getsignal(signal.SIGINT)
    # Signals are for the main thread; a handler that Python did not set can't be put back.
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        usual(*came[0])
