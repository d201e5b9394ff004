"""ggml's matrix products by way of the libraries that llama-cpp-python brings, without a line of C."""

import ctypes
import weakref
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_bool, c_int, c_int64, c_size_t, c_uint8, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

# ggml_type -> (number, values of a block, bytes of a block)
TYPES = {"Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34)}
# Copies of a weight in a graph: it holds 2048 leaves, of which the activations are one.
MOST_COPIES = 2047
_F32 = 0
_SUCCESS = 0


class _InitParams(Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class _ThreadpoolParams(Structure):
    _fields_ = (
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


class _Plan(Structure):
    _fields_ = (
        ("work_size", c_size_t),
        ("work_data", POINTER(c_uint8)),
        ("n_threads", c_int),
        ("threadpool", c_void_p),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("use_ref", c_bool),
        ("reserved", c_uint8 * 64),  # what later versions may add
    )


_Log = ctypes.CFUNCTYPE(None, c_int, ctypes.c_char_p, c_void_p)
# Silence, or every tensor that is reordered is told on stderr. The callback has to stay alive.
_silent = _Log(lambda *_: None)


def _libraries() -> tuple[Any, Any]:
    """The tensors' library, and the CPU's.

    Raises
    ------
    ImportError
        When llama-cpp-python is not installed.
    """
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    base, cpu = (ctypes.CDLL(str(folder / f"libggml-{name}.so"), ctypes.RTLD_GLOBAL) for name in ("base", "cpu"))

    def declare(library: Any, name: str, result: Any, *arguments: Any) -> None:
        function = getattr(library, name)
        function.restype, function.argtypes = result, list(arguments)

    declare(base, "ggml_init", c_void_p, _InitParams)
    declare(base, "ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
    declare(base, "ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
    declare(base, "ggml_new_graph", c_void_p, c_void_p)
    declare(base, "ggml_build_forward_expand", None, c_void_p, c_void_p)
    declare(base, "ggml_get_data", c_void_p, c_void_p)
    declare(base, "ggml_quantize_chunk", c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)
    declare(base, "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
    declare(base, "ggml_free", None, c_void_p)
    declare(base, "ggml_backend_buffer_free", None, c_void_p)
    declare(cpu, "ggml_threadpool_free", None, c_void_p)
    declare(base, "ggml_backend_tensor_set", None, c_void_p, c_void_p, c_size_t, c_size_t)
    declare(base, "ggml_backend_cpu_buffer_type", c_void_p)
    declare(base, "ggml_threadpool_params_default", _ThreadpoolParams, c_int)
    declare(cpu, "ggml_threadpool_new", c_void_p, POINTER(_ThreadpoolParams))
    declare(cpu, "ggml_graph_plan", _Plan, c_void_p, c_int, c_void_p)
    declare(cpu, "ggml_graph_compute", c_int, c_void_p, POINTER(_Plan))
    # A C++ function of no arguments, which the CPU's library exports under its mangled name.
    declare(cpu, "_Z35ggml_backend_cpu_repack_buffer_typev", c_void_p)
    declare(base, "ggml_log_set", None, _Log, c_void_p)
    base.ggml_log_set(_silent, None)
    cpu.ggml_cpu_init()
    return base, cpu


def linear(
    type_name: str, weight: np.ndarray, x: np.ndarray, copies: int, threads: int, *, repacked: bool = False
) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """Prepare ``x @ weight.T`` for several copies of a weight.

    Parameters
    ----------
    type_name
        A name of `TYPES`.
    weight
        ``[N, K]`` float32, quantized here.
    x
        ``[M, K]`` float32.
    copies
        Copies of the weight, each in memory of its own; at most `MOST_COPIES`.
    threads
        Threads of ggml's pool.
    repacked
        Put weights in the buffer that reorders them for the CPU's vectors, as llama.cpp does where it can.

    Returns
    -------
    What computes the products with all copies (everything is freed when it is dropped), and what reads the last one,
    ``[M, N]``.

    Raises
    ------
    ImportError
        When llama-cpp-python is not installed.
    """
    assert copies <= MOST_COPIES
    base, cpu = _libraries()
    (N, K), M = weight.shape, len(x)
    number, block, block_bytes = TYPES[type_name]
    size = N * K // block * block_bytes

    def context(tensors: int, data: int, *, no_alloc: bool) -> Any:
        return base.ggml_init(_InitParams(2**20 + tensors * 1024 + data, None, no_alloc))

    held = context(copies, 0, no_alloc=True)
    weights = [base.ggml_new_tensor_2d(held, number, K, N) for _ in range(copies)]
    buffers = cpu._Z35ggml_backend_cpu_repack_buffer_typev() if repacked else base.ggml_backend_cpu_buffer_type()
    buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(held, buffers)
    if not buffer:
        raise MemoryError(f"ggml can't allocate {copies} weights of {size} bytes")
    packed = np.empty(size, np.uint8)
    weight = np.ascontiguousarray(weight, np.float32)
    base.ggml_quantize_chunk(number, weight.ctypes.data, packed.ctypes.data, 0, N, K, None)
    for tensor in weights:
        base.ggml_backend_tensor_set(tensor, packed.ctypes.data, 0, size)

    work = context(copies + 2, 4 * M * K + copies * (4 * M * N + 64), no_alloc=False)
    activations = base.ggml_new_tensor_2d(work, _F32, K, M)
    ctypes.memmove(base.ggml_get_data(activations), np.ascontiguousarray(x, np.float32).ctypes.data, 4 * M * K)
    graph = base.ggml_new_graph(work)
    products = [base.ggml_mul_mat(work, tensor, activations) for tensor in weights]
    for product in products:
        base.ggml_build_forward_expand(graph, product)
    pool = cpu.ggml_threadpool_new(byref(base.ggml_threadpool_params_default(threads)))
    plan = cpu.ggml_graph_plan(graph, threads, pool)
    scratch = np.empty(plan.work_size + 64, np.uint8)
    plan.work_data = scratch.ctypes.data_as(POINTER(c_uint8))

    def run(_alive: np.ndarray = scratch) -> None:
        if cpu.ggml_graph_compute(graph, byref(plan)) != _SUCCESS:
            raise RuntimeError("ggml_graph_compute failed")

    def free() -> None:
        cpu.ggml_threadpool_free(pool)
        base.ggml_free(work)
        base.ggml_free(held)
        base.ggml_backend_buffer_free(buffer)

    weakref.finalize(run, free)

    def result() -> np.ndarray:
        data = ctypes.cast(base.ggml_get_data(products[-1]), POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(data, (M, N)).copy()

    return run, result
