"""`build`: a model in, a compiled model out. The phases stand below one after the other."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from .calibration import InputSquares, calibration_windows, observe
from .compression import CompressedParameters, run_transform
from .config import HWPQConfig
from .errors import ConfigError, ImportModelError
from .importers import ImportedModel, import_model
from .layer_report import build_report, plan_report
from .relax_passes.compress_linears import TRANSFORM, CompressLinears, input_squares_name, packing_groups
from .relax_passes.pipeline import Dump, compile_module, no_dump
from .relax_passes.plan import Plan, make_plan
from .runtime.compiled_model import CompiledModel
from .runtime.manifest import EntrySpec, GenerationSpec, Manifest, TensorSpec
from .targets import check_native, cpu_features, resolve_target


def build(
    model: Any,
    target: "str | tvm.target.Target" = "cuda",
    *,
    config: HWPQConfig | None = None,
    calibration: "str | Path | None" = "default",
    max_batch: int = 1,
    max_seq_len: int = 2048,
    threads: int | None = None,
    work_dir: "str | Path | None" = None,
    debug_dump: "str | Path | None" = None,
    progress: bool = True,
) -> CompiledModel:
    """Compress a language model with HWPQ and compile it.

    Parameters
    ----------
    model
        A Hugging Face causal language model: its folder, a live `PreTrainedModel`, or a GGUF file.
    target
        `"cpu"` (this machine), `"cpu:x86-64-v3"` and the like, or a `tvm.target.Target`.
    config
        Scheme of each layer; by default 2:4 int8, and a dense int8 `lm_head`.
    calibration
        `"default"` for the text that ships with the package, the path of a UTF-8 text file, or None: then nothing is
        calibrated and every layer is pruned by magnitude.
    max_batch
        Sequences that run at once.
    max_seq_len
        Tokens, prompt and answer together, that the KV cache holds.
    threads
        Threads that the compiled model runs with; by default every core of this machine.
    work_dir
        Where the compiled library lies while the model lives; by default among the system's temporary files.
    debug_dump
        Folder that gets the module as TVMScript after each phase.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).

    Returns
    -------
    CompiledModel
        Ready to run; `save` writes it as an artefact folder.

    Raises
    ------
    HwpqError
        For everything that is wrong with the model, the target, the configuration or the calibration text.
    """
    config = config or HWPQConfig()
    clock = _Clock()
    dump = _dump_to(debug_dump)
    resolved = resolve_target(target, threads=threads)
    check_native(resolved)

    # 1. import: the model as Relax, weights as parameters that are read when they are needed.
    with clock("import"):
        imported = import_model(model, max_batch=max_batch, max_seq_len=max_seq_len)
        dump("import", imported.module)

    # 2. plan: one scheme per linear. What can fail fails here, before any work on weights.
    with clock("plan"):
        planned = make_plan(imported.module, imported.entries, config, calibrated=calibration is not None)

    # 3. calibrate: input squares of every linear, on the host.
    squares: InputSquares | None = None
    if calibration is not None and planned.needs_calibration:
        with clock("calibrate"):
            windows, source = calibration_windows(calibration, imported)
            squares = observe(imported, _observed(planned), windows, source, progress=progress)

    # 4. compress: kernels on packed parameters, and the transformation that makes those, run layer by layer.
    with clock("compress"):
        mod = tvm.transform.Sequential([CompressLinears(planned, imported.entries)])(imported.module)
        dump("compress", mod)
        compressed = CompressedParameters({}, {})
        if packing_groups(planned):
            transform = _only(mod, (TRANSFORM,))
            sums = squares.sums if squares else {}
            compressed = run_transform(transform, imported.parameters, sums, progress=progress, dump=dump)
        mod = _only(mod, imported.entries)
        weights = _weights(mod[imported.entries[0]], imported, compressed)

    # 5 to 7. optimise, schedule, lower; then machine code.
    with clock("compile"):
        if work_dir is not None:
            _folder(work_dir, "work_dir")
        # A folder of its own, which lives as long as the model that runs from it: no build overwrites another's code.
        temporary = tempfile.TemporaryDirectory(prefix="hwpq-build-", dir=work_dir)
        library = Path(temporary.name) / "model.so"
        choices = compile_module(mod, resolved, library, dump=dump)

    manifest = _manifest(mod, resolved, config, imported, weights)
    report = build_report(planned, mod, imported, compressed.statistics, choices, squares, weights, clock.seconds)
    return CompiledModel(library, weights, manifest, report, imported.tokenizer_files, keep_alive=temporary)


def plan(
    model: Any,
    target: "str | tvm.target.Target" = "cuda",
    *,
    config: HWPQConfig | None = None,
    calibration: "str | Path | None" = "default",
    max_batch: int = 1,
    max_seq_len: int = 2048,
) -> dict[str, Any]:
    """What `build` would do with each layer, found without compressing or compiling anything.

    Returns
    -------
    dict
        A report as of `CompiledModel.report`, without what only a build can measure.
    """
    resolve_target(target)
    imported = import_model(model, max_batch=max_batch, max_seq_len=max_seq_len)
    planned = make_plan(imported.module, imported.entries, config or HWPQConfig(), calibrated=calibration is not None)
    return plan_report(planned, imported)


class _Clock:
    """Seconds of each phase, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


def _folder(path: "str | Path", option: str) -> Path:
    """Make a folder that an option names."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option}={folder}: can't be made a folder ({error.strerror}); name another one.") from error
    return folder


def _dump_to(folder: "str | Path | None") -> Dump:
    """A dump that writes numbered TVMScript files to `folder`."""
    if folder is None:
        return no_dump
    path = _folder(folder, "debug_dump")
    count = 0

    def dump(phase: str, mod: tvm.IRModule) -> None:
        nonlocal count
        count += 1
        (path / f"{count:02d}_{phase}.py").write_text(mod.script(), encoding="utf-8")

    return dump


def _observed(plan: Plan) -> dict[str, str]:
    """Weight name -> name of the sum of its input, for one linear of each packed group."""
    return {group.members[0].weight: input_squares_name(group) for group in plan.groups if group.format.packs}


def _only(mod: tvm.IRModule, names: tuple[str, ...]) -> tvm.IRModule:
    """The module with those Relax functions alone, and the kernels that they call."""
    functions = {g: f for g, f in mod.functions_items() if isinstance(f, tirx.PrimFunc) or g.name_hint in names}
    return relax.transform.DeadCodeElimination(list(names))(tvm.IRModule(functions, attrs=mod.attrs))


def _weights(
    function: relax.Function, imported: ImportedModel, compressed: CompressedParameters
) -> dict[str, np.ndarray]:
    """Arrays of the function's weight arguments, in order: packed ones from compression, the rest from the model."""
    inputs = int(function.attrs["num_input"])
    names = [str(param.name) for param in function.params[inputs:]]
    found = {n: compressed.packed[n] if n in compressed.packed else imported.parameters.load(n) for n in names}
    if damaged := [n for n, array in found.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]:
        raise ImportModelError(
            f"{', '.join(damaged)}: infinite or not a number; the checkpoint is damaged, fetch or train it again."
        )
    return found


def _tensor(name: str, type_: relax.TensorType) -> TensorSpec:
    shape = tuple(int(dim) if isinstance(dim, tirx.IntImm) else str(dim.name) for dim in type_.shape.values)
    return TensorSpec(name, shape, str(type_.dtype))


def _manifest(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    config: HWPQConfig,
    imported: ImportedModel,
    weights: dict[str, np.ndarray],
) -> Manifest:
    metadata = imported.metadata
    entries = {}
    for entry in imported.entries:
        function = mod[entry]
        inputs = [_tensor(str(p.name), p.ty) for p in function.params[: int(function.attrs["num_input"])]]
        outputs = [_tensor(f"output_{i}", type_) for i, type_ in enumerate(function.ret_ty.fields)]
        entries[entry] = EntrySpec(tuple(inputs), tuple(outputs))
    return Manifest(
        hwpq_tvm_version=version("hwpq-tvm"),
        tvm_version=version("apache-tvm"),
        tvm_ffi_version=version("apache-tvm-ffi"),
        target=target.export(),
        required_features=tuple(sorted(cpu_features(target))),
        entries=entries,
        parameters=tuple(TensorSpec(name, array.shape, array.dtype.name) for name, array in weights.items()),
        config=config.to_json(),
        source={
            "path": metadata.source,
            "format": metadata.source_format,
            "bytes": metadata.source_bytes,
            "architecture": metadata.architecture,
        },
        generation=GenerationSpec(
            batch=metadata.kv_cache_shape[2],
            max_seq_len=metadata.max_seq_len,
            kv_cache_shape=metadata.kv_cache_shape,
            kv_cache_dtype="float32",
            eos_token_ids=metadata.eos_token_ids,
            bos_token_id=metadata.bos_token_id,
            vocab_size=metadata.vocab_size,
        ),
    )
