"""`build`: a model in, a compiled model out. The phases stand below one after the other."""

import functools
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from .calibration_source import CalibrationSource, calibration_source
from .calibration_text import Calibration
from .config import HWPQConfig
from .cpu import host_cores
from .cuda_toolkit import Fatbin, find_compiler
from .entry_specs import entry_specs
from .errors import ConfigError, ImportModelError
from .finished_layers import FinishedLayers, fingerprint
from .importers import CausalLMMetadata, ImportedModel, import_model
from .kept_masks import keep_masks
from .layer_report import build_report, plan_report, tuning_report
from .memory import default_memory_budget
from .relax_passes.compress_linears import CompressLinears
from .relax_passes.make_plan import make_plan
from .relax_passes.packing import arranged, packing_groups
from .relax_passes.pipeline import Dump, compile_module, no_dump
from .relax_passes.plan import Plan
from .runtime.compiled_model import CompiledModel
from .runtime.manifest import GenerationSpec, Manifest, TensorSpec
from .schedules.records import TuningRecords
from .stages import compress_model
from .targets import check_native, cpu_features, cpu_part, resolve_target
from .tuning.logs import find_records

logger = logging.getLogger(__name__)


def build(
    model: Any,
    target: "str | tvm.target.Target" = "cuda",
    *,
    config: HWPQConfig | None = None,
    calibration: "Calibration | str | Path | Sequence[Any] | np.ndarray | None" = "default",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    params: Mapping[str, Any] | None = None,
    max_batch: int = 1,
    max_seq_len: int = 2048,
    threads: int | None = None,
    tuning_logs: "str | Path | None" = None,
    work_dir: "str | Path | None" = None,
    resume: bool = False,
    memory_budget: int | None = None,
    debug_dump: "str | Path | None" = None,
    progress: bool = True,
) -> CompiledModel:
    """Compress a language model with HWPQ and compile it.

    Parameters
    ----------
    model
        A Hugging Face model: its folder, a live `PreTrainedModel`, or a GGUF file; any `torch.nn.Module` with
        `example_inputs`, or a `torch.export.ExportedProgram`; an ONNX file or `ModelProto`; a Relax `IRModule`.
    target
        `"cpu"` (this machine), `"cpu:x86-64-v3"` and the like, `"cuda"` (the GPU of this machine), `"cuda:sm_80"` and
        the like, which needs no GPU, or a `tvm.target.Target`. nvcc has to be there for GPUs.
    config
        Scheme of each layer; by default 2:4 int8 with the kept weights adjusted to the calibration text where that is
        predicted to take minutes, and a dense int8 `lm_head`.
    calibration
        `"default"` for the text that ships with the package, the path of a UTF-8 text file, a list of texts, token ids,
        or a `Calibration` that says how much of one of these; None calibrates nothing: then every layer is pruned by
        magnitude and nothing is adjusted.
        For models that are no causal language models also a list of tuples of inputs, or such lists by entry function;
        `"default"` falls back to `example_inputs`, or to nothing, where the text can't be read.
    example_inputs
        Inputs by which a torch module is traced: a tuple of tensors, or a dictionary of them by name.
    dynamic_shapes
        Dimensions of these inputs that vary, as `torch.export.export` takes them; for ONNX models
        `{input: {axis: size or name}}`.
    params
        Values of the weights of a Relax module, by name, or as `relax.frontend.detach_params` gives them.
    max_batch
        Sequences that run at once: prompts of any lengths, see `CompiledModel.generate_batch`. What computes one
        sequence computes all of them, so a model for several is slower with one.
    max_seq_len
        Tokens, prompt and answer together, that the KV cache holds.
    threads
        Threads that calibration, compression and the compiled model run with; by default every core of this machine.
    tuning_logs
        Folder that `tune` wrote (or one of such folders): its records choose kernels, and between 2:4 and dense where a
        scheme has `sparsity="auto"`. Records that ship with the package are looked up as well: of several for a kernel
        the one with more evidence counts, then the faster one. What was not used is in the report.
    work_dir
        Folder that keeps each layer (in `layers`) as soon as it is compressed, to be removed by whoever named it, and
        the compiled library while the model lives; by default layers are kept in memory only, and the library among the
        system's temporary files.
    resume
        Whether to go on with the layers that an earlier build of the same model, configuration and calibration left in
        `work_dir`; otherwise such layers are removed.
    memory_budget
        Bytes that calibration may take for Gram matrices and float weights: with less, the model runs over the
        calibration data several times. By default half of the memory that is free.
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
    if memory_budget is None:
        memory_budget = default_memory_budget()
    if not isinstance(memory_budget, int) or memory_budget < 0:
        raise ConfigError(f"memory_budget={memory_budget!r}: expected a number of bytes.")
    clock = _Clock()
    dump = _dump_to(debug_dump)
    resolved = resolve_target(target, threads=threads)
    check_native(resolved)
    if resolved.kind.name == "cuda":
        find_compiler()
    records = find_records(resolved, None if tuning_logs is None else Path(tuning_logs))

    # 1. import: the model as Relax, weights as parameters that are read when they are needed.
    importing = functools.partial(
        import_model,
        model,
        max_seq_len=max_seq_len,
        kv_cache_dtype=config.kv_cache_dtype,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        params=params,
    )
    with clock("import"):
        imported = importing(max_batch=max_batch)
        dump("import", imported.module)

    # 2. plan: one scheme per linear. What can fail fails here, before any work on weights.
    with clock("plan"):
        source = calibration_source(calibration, imported)
        planned = keep_masks(_plan(imported, config, source, resolved, records), imported.parameters)
        data = source.read() if source.entries and planned.needs_calibration else None
        groups = packing_groups(planned)
        folder = None if work_dir is None else _folder(work_dir, "work_dir")
        depends_on = fingerprint(imported, groups, data) if folder else {}
        finished = FinishedLayers(folder, depends_on, resume=resume)

    # 3 and 4. calibrate on the host, and compress: as the module `transform_params`, run layer by layer.
    with clock("import"):
        # Windows of text are read one at a time, by the same model for one sequence.
        causal_lm = imported.metadata.causal_lm
        several = data is not None and causal_lm is not None and causal_lm.max_batch > 1
        observed = importing(max_batch=1) if several else imported
    calibrated = compress_model(
        observed,
        groups,
        data,
        finished,
        memory_budget=memory_budget,
        sequential=config.sequential,
        clock=clock,
        threads=min(int(cpu_part(resolved).attrs["num-cores"]), host_cores()),
        progress=progress,
        dump=dump,
    )
    with clock("compress"):
        mod = tvm.transform.Sequential([CompressLinears(planned, imported.entries)])(imported.module)
        dump("compress", mod)
        compressed = finished.arrays()
        packed = {name: array for group in groups for name, array in arranged(group, compressed).items()}
        weights = _weights(mod[imported.entries[0]], imported, packed)

    # 5 to 7. optimise, schedule, lower; then machine code.
    with clock("compile"):
        # A folder of its own, which lives as long as the model that runs from it: no build overwrites another's code.
        temporary = tempfile.TemporaryDirectory(prefix="hwpq-build-", dir=folder)
        library = Path(temporary.name) / "model.so"
        compiled = compile_module(mod, resolved, library, records=records, dump=dump)

    manifest = _manifest(resolved, config, imported, weights, compiled.device_code)
    report = build_report(
        planned,
        mod,
        imported,
        compressed,
        compiled.choices,
        resolved,
        calibrated,
        weights,
        clock.seconds,
        records,
        source.notes,
    )
    if manifest.generation is not None:
        report["model"]["kv_cache_bytes"] = manifest.generation.kv_cache_bytes
    if compiled.device_code is not None:
        report["device_code"] = compiled.device_code.to_json()
    return CompiledModel(library, weights, manifest, report, imported.tokenizer_files, keep_alive=temporary)


def plan(
    model: Any,
    target: "str | tvm.target.Target" = "cuda",
    *,
    config: HWPQConfig | None = None,
    calibration: "Calibration | str | Path | Sequence[Any] | np.ndarray | None" = "default",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    params: Mapping[str, Any] | None = None,
    max_batch: int = 1,
    max_seq_len: int = 2048,
    threads: int | None = None,
    tuning_logs: "str | Path | None" = None,
) -> dict[str, Any]:
    """What `build` would do with each layer, found without compressing or compiling anything.

    The parameters are those of `build`.

    Returns
    -------
    dict
        A report as of `CompiledModel.report`, without what only a build can measure.
    """
    resolved = resolve_target(target, threads=threads)
    config = config or HWPQConfig()
    records = find_records(resolved, None if tuning_logs is None else Path(tuning_logs))
    imported = import_model(
        model,
        max_batch=max_batch,
        max_seq_len=max_seq_len,
        kv_cache_dtype=config.kv_cache_dtype,
        needs_weights=False,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        params=params,
    )
    source = calibration_source(calibration, imported)
    planned = _plan(imported, config, source, resolved, records)
    return plan_report(planned, imported, source.notes) | {"tuning": tuning_report(records, {})}


def _plan(
    imported: ImportedModel,
    config: HWPQConfig,
    source: CalibrationSource,
    target: tvm.target.Target,
    records: TuningRecords,
) -> Plan:
    return make_plan(
        imported.module,
        imported.entries,
        config,
        calibrated=source.entries,
        target=target,
        records=records,
        has_lm_head=imported.metadata.causal_lm is not None,
    )


class _Clock:
    """Seconds of each phase, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        logger.info("%s: %.1f s", phase, seconds)


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


def _weights(
    function: relax.Function, imported: ImportedModel, compressed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays of the function's weight arguments, in order: packed ones from compression, the rest from the model."""
    inputs = int(function.attrs["num_input"])
    names = [str(param.name) for param in function.params[inputs:]]
    found = {n: compressed[n] if n in compressed else imported.parameters.load(n) for n in names}
    if damaged := [n for n, array in found.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]:
        raise ImportModelError(
            f"{', '.join(damaged)}: infinite or not a number; the checkpoint is damaged, fetch or train it again."
        )
    return found


def _manifest(
    target: tvm.target.Target,
    config: HWPQConfig,
    imported: ImportedModel,
    weights: dict[str, np.ndarray],
    device_code: Fatbin | None,
) -> Manifest:
    metadata = imported.metadata
    return Manifest(
        hwpq_tvm_version=version("hwpq-tvm"),
        tvm_version=version("apache-tvm"),
        tvm_ffi_version=version("apache-tvm-ffi"),
        target=target.export(),
        required_features=tuple(sorted(cpu_features(target))),
        entries=entry_specs(imported.module, imported.entries),
        parameters=tuple(TensorSpec(name, array.shape, array.dtype.name) for name, array in weights.items()),
        config=config.to_json(),
        source={
            "path": metadata.source,
            "format": metadata.source_format,
            "bytes": metadata.source_bytes,
            "architecture": metadata.architecture,
        },
        generation=None if metadata.causal_lm is None else _generation(metadata.causal_lm),
        device_code=None if device_code is None else device_code.facts(),
    )


def _generation(metadata: CausalLMMetadata) -> GenerationSpec:
    return GenerationSpec(
        batch=metadata.max_batch,
        max_seq_len=metadata.max_seq_len,
        kv_cache_shape=metadata.kv_cache_shape,
        kv_cache_dtype=metadata.kv_cache_dtype,
        eos_token_ids=metadata.eos_token_ids,
        bos_token_id=metadata.bos_token_id,
        vocab_size=metadata.vocab_size,
    )
