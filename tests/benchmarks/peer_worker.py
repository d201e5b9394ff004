"""One runtime in a process of its own, for peers.py: it prepares a model for itself, or runs one turn by turn.

    python peer_worker.py prepare PEER SOURCE FOLDER
    python peer_worker.py serve RUNTIME MODEL THREADS CONTEXT

Answers are lines of JSON on stdout; `serve` gives the versions of its packages first, then reads requests of
`{"ids": [...], "new_tokens": n}` as lines on stdin and answers `{"prefill_seconds", "decode_seconds", "tokens"}`. The
interpreter needs what the runtime needs, and NumPy: not this project, unless the runtime is ours.
"""

import ctypes
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Turn = dict[str, Any]


class Runtime(Protocol):
    """What can run the model."""

    packages: tuple[str, ...]  # whose versions matter

    def open(self, path: Path, threads: int, context: int) -> Callable[[list[int], int], Turn]:
        """Load its model; gives a function that runs one turn from an empty cache."""


class Peer(Runtime, Protocol):
    """A runtime that makes its model itself."""

    install: str  # how to come by its packages

    def prepare(self, source: Path, folder: Path) -> Path:
        """Make what it runs out of `source`, a GGUF file, in `folder`; ImportError where a package is missing."""


def cached(folder: Path, source: Path, name: str) -> tuple[Path, Path]:
    """Where what is made of `source` belongs, and where to write it first, so that nothing half written is found."""
    # Other models, and other versions of this one, have files of their own.
    made = folder / f"{source.stem}-{source.stat().st_size}.{name}"
    return made, made.with_name(f"{made.name}.part")


def require(*packages: str) -> None:
    """Import them, or raise ImportError."""
    for package in packages:
        importlib.import_module(package)


def timed(prefill: Callable[[], int], decode: Callable[[int], int], new_tokens: int) -> Turn:
    """Run a prefill and `new_tokens` steps of decoding; both give the most likely next token."""
    start = time.perf_counter()
    tokens = [prefill()]
    middle = time.perf_counter()
    for _ in range(new_tokens):
        tokens.append(decode(tokens[-1]))
    return {"prefill_seconds": middle - start, "decode_seconds": time.perf_counter() - middle, "tokens": tokens}


class Hwpq:
    """An artefact of this project."""

    packages = ("hwpq-tvm", "apache-tvm")

    def open(self, path: Path, threads: int, context: int) -> Callable[[list[int], int], Turn]:
        """Load the artefact."""
        from hwpq_tvm import load
        from hwpq_tvm.runtime.session import Session

        model = load(path)
        model.threads = threads
        session = Session(model)

        def turn(ids: list[int], new_tokens: int) -> Turn:
            session.reset()
            return timed(
                lambda: int(session.prefill(ids)[0].argmax()),
                lambda token: int(session.decode(token).argmax()),
                new_tokens,
            )

        return turn


class LlamaCpp:
    """llama.cpp on the GGUF file in a format that its own quantizer writes.

    `plain` keeps the weights out of its repacked buffers and its AMX code, which crashes in some virtual machines.
    """

    packages = ("llama-cpp-python",)
    install = "pip install llama-cpp-python (compiled for minutes)"

    def __init__(self, quantization: str, *, plain: bool = False) -> None:
        self._quantization = quantization
        self._plain = plain

    def prepare(self, source: Path, folder: Path) -> Path:
        """Quantize the file."""
        import llama_cpp

        file, part = cached(folder, source, f"{self._quantization}.gguf")
        if not file.exists():
            options = llama_cpp.llama_model_quantize_default_params()
            options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{self._quantization}")
            options.allow_requantize = True
            if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(options)):
                raise RuntimeError(f"{source}: llama.cpp can't quantize it to {self._quantization}")
            part.rename(file)
        return file

    def open(self, path: Path, threads: int, context: int) -> Callable[[list[int], int], Turn]:
        """Load the quantized file."""
        import llama_cpp

        if self._plain:
            defaults = llama_cpp.llama_model_default_params

            def plain() -> Any:
                params = defaults()
                params.use_extra_bufts = False
                return params

            # `llama_cpp.Llama` has no option for it.
            llama_cpp.llama_model_default_params = llama_cpp.llama_cpp.llama_model_default_params = plain
        sizes = dict.fromkeys(("n_ctx", "n_batch", "n_ubatch"), context)
        model = llama_cpp.Llama(str(path), **sizes, n_threads=threads, n_threads_batch=threads, verbose=False)

        def run(tokens: list[int]) -> int:
            model.eval(tokens)
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())

        def turn(ids: list[int], new_tokens: int) -> Turn:
            model.reset()
            model._ctx.kv_cache_clear()
            return timed(lambda: run(ids), lambda token: run([token]), new_tokens)

        return turn


def float_model(source: Path) -> Any:
    """The GGUF file as a float32 model of transformers that can be saved."""
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    # What was read from GGUF counts as quantized, and refuses to be saved.
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    model = type(read)(read.config).to(torch.float32)
    model.load_state_dict(read.state_dict())
    return model.eval()


class OnnxRuntime:
    """ONNX Runtime GenAI: int4 in blocks of 32 with int8 activations, as its model builder makes it for the CPU."""

    packages = ("onnxruntime-genai", "onnxruntime")
    install = "pip install onnxruntime-genai onnx onnx-ir torch transformers gguf"

    def prepare(self, source: Path, folder: Path) -> Path:
        """Convert GGUF to float32 of transformers, and that to int4."""
        from onnxruntime_genai.models.builder import create_model, parse_extra_options
        from transformers import AutoTokenizer

        out, part = cached(folder, source, "onnx-int4")
        floats, floats_part = cached(folder, source, "float32")
        if not out.exists():
            if not floats.exists():
                shutil.rmtree(floats_part, ignore_errors=True)
                float_model(source).save_pretrained(floats_part)
                AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(floats_part)
                floats_part.rename(floats)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            where = ("", str(floats), str(part), "int4", "cpu", str(folder / "cache"))
            # Accuracy level 4: products of int8 activations, its fastest.
            create_model(*where, **parse_extra_options(*where, ["int4_accuracy_level=4"]))
            part.rename(out)
        return out

    def open(self, path: Path, threads: int, context: int) -> Callable[[list[int], int], Turn]:
        """Load the converted model."""
        import onnxruntime_genai

        config = onnxruntime_genai.Config(str(path))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        model = onnxruntime_genai.Model(config)

        def turn(ids: list[int], new_tokens: int) -> Turn:
            params = onnxruntime_genai.GeneratorParams(model)
            length = len(ids) + new_tokens + 1
            # min_length keeps end tokens from ending the text.
            params.set_search_options(max_length=length, min_length=length, do_sample=False)
            generator = onnxruntime_genai.Generator(model, params)

            def decode(_: int = 0) -> int:
                generator.generate_next_token()
                return int(generator.get_next_tokens()[0])

            def prefill() -> int:
                generator.append_tokens(np.asarray(ids, np.int32))
                return decode()

            return timed(prefill, decode, new_tokens)

        return turn


class OpenVino:
    """OpenVINO GenAI, which reads the GGUF file as it is; prefill and decode by its own clock.

    It computes in bfloat16 where the CPU has AMX, unless another precision is asked for.
    """

    packages = ("openvino-genai",)
    install = "pip install openvino-genai"

    def __init__(self, precision: str | None = None) -> None:
        self._options = {"INFERENCE_PRECISION_HINT": precision} if precision else {}

    def prepare(self, source: Path, folder: Path) -> Path:
        """The GGUF file as it is."""
        require("openvino_genai")
        return source

    def open(self, path: Path, threads: int, context: int) -> Callable[[list[int], int], Turn]:
        """Load the GGUF file."""
        import openvino
        import openvino_genai

        pipeline = openvino_genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads, **self._options)

        def turn(ids: list[int], new_tokens: int) -> Turn:
            config = openvino_genai.GenerationConfig(max_new_tokens=new_tokens + 1, ignore_eos=True, do_sample=False)
            result = pipeline.generate(openvino.Tensor(np.asarray([ids], np.int64)), config)
            raw = result.perf_metrics.raw_metrics  # microseconds
            # One for each token after the first: not so where it puts tokens together, or counts the first.
            if len(raw.m_durations) != new_tokens:
                raise RuntimeError(f"OpenVINO gave {len(raw.m_durations)} times for {new_tokens} steps of decoding")
            return {
                "prefill_seconds": raw.m_times_to_first_token[0] / 1e6,
                "decode_seconds": sum(raw.m_durations) / 1e6,
                "tokens": [int(token) for token in result.tokens[0]],
            }

        return turn


class Torch:
    """The float32 model of transformers, run by torch as it stands."""

    packages = ("torch", "transformers")
    install = "pip install torch transformers gguf"

    def prepare(self, source: Path, folder: Path) -> Path:
        """The GGUF file as it is."""
        require("gguf", "torch", "transformers")
        return source

    def open(self, path: Path, threads: int, context: int) -> Callable[[list[int], int], Turn]:
        """Read the GGUF file into float32."""
        import torch

        torch.set_num_threads(threads)
        model = float_model(path)

        def turn(ids: list[int], new_tokens: int) -> Turn:
            cache = None

            def run(tokens: list[int]) -> int:
                nonlocal cache
                with torch.inference_mode():
                    result = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = result.past_key_values
                return int(result.logits[0, -1].argmax())

            return timed(lambda: run(ids), lambda token: run([token]), new_tokens)

        return turn


PEERS: dict[str, Peer] = {
    "llama.cpp Q4_0": LlamaCpp("Q4_0"),
    "llama.cpp Q8_0": LlamaCpp("Q8_0"),
    "llama.cpp Q4_0 plain": LlamaCpp("Q4_0", plain=True),
    "llama.cpp Q8_0 plain": LlamaCpp("Q8_0", plain=True),
    "ONNX Runtime int4": OnnxRuntime(),
    "OpenVINO": OpenVino(),
    "OpenVINO float32": OpenVino("f32"),
    "torch float32": Torch(),
}
RUNTIMES: dict[str, Runtime] = {"hwpq_tvm": Hwpq(), **PEERS}


def main() -> None:
    """Prepare or serve."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the runtimes print must not come between the answers
    task, name, source, *arguments = sys.argv[1:]
    if task == "prepare":
        peer = PEERS[name]
        try:
            answer = {"model": str(peer.prepare(Path(source), Path(arguments[0])))}
        except ImportError as error:
            answer = {"missing": str(error), "install": peer.install}
        answers.write(json.dumps(answer) + "\n")
        return
    threads, context = map(int, arguments)
    runtime = RUNTIMES[name]
    turn = runtime.open(Path(source), threads, context)
    answers.write(json.dumps({package: version(package) for package in runtime.packages}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(turn(**json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
