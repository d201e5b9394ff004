"""A compiled model: its code, weights and manifest, ready to run."""

import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..cpu import host_cores, missing_features
from ..errors import GenerationError
from .device import Device, load_cuda_runtime
from .device_check import check_device, default_device, other_target
from .generation import Generation, check_prompt, sampler
from .manifest import GenerationSpec, Manifest, TensorSpec
from .session import Session
from .tokenizer import TextStream, TextTokenizer
from .tvm_runtime import VirtualMachine, use_threads
from .weights import Weights


class CompiledModel:
    """A model that `hwpq_tvm.build` compiled or `hwpq_tvm.load` read.

    Parameters
    ----------
    library
        Shared library of the compiled entry functions.
    params
        Weights by name, as TVM tensors or NumPy arrays; every one that the manifest lists.
    manifest
        What the entry functions take, and where they came from.
    report
        What was done to every layer, and what it cost (report.json).
    tokenizer_files
        Tokenizer files by name; empty when there are none.
    device
        Where it runs; by default the CPU, or the first GPU for what was compiled for one.
    keep_alive
        Anything that has to live as long as the model, such as the temporary folder of `library`.

    Attributes
    ----------
    library, manifest, report, tokenizer_files, device
        As above.
    """

    def __init__(
        self,
        library: Path,
        params: Mapping[str, Any],
        manifest: Manifest,
        report: Mapping[str, Any],
        tokenizer_files: Mapping[str, bytes],
        *,
        device: Device | None = None,
        keep_alive: object = None,
    ) -> None:
        self.library = library
        self.manifest = manifest
        self.report = report
        self.tokenizer_files = tokenizer_files
        self._keep_alive = keep_alive
        self.device = device or default_device(manifest)
        self._weights = Weights(manifest.parameters, params, self.device)
        self._threads: int | None = None
        self._lock = threading.Lock()
        self._missing = missing_features(manifest.required_features)
        if not self.device.copies:
            self.prepare()

    def prepare(self) -> None:
        """Load the code and put the weights where it runs; the first call does it too.

        A model for a GPU can be made, inspected and saved where there is none.

        Raises
        ------
        TargetError, ArtifactError
            When the device can't run it (see `check_device`), or has too little memory.
        DependencyError
            When a library that drives the device is missing.
        """
        with self._lock:
            _ = self.machine
            self._weights.move()

    @cached_property
    def machine(self) -> VirtualMachine:
        """What runs the entry functions."""
        check_device(self.manifest, self.device)
        if self.device.kind == "cuda":
            load_cuda_runtime()
        with self.device.room_for("the model's code"):
            return VirtualMachine(self.library, (self.device.code, self.device.index))

    @cached_property
    def _entries(self) -> dict[str, Any]:
        return {name: self.machine.entry(name) for name in self.manifest.entries}

    @property
    def target(self) -> Mapping[str, Any]:
        """The target that the model was compiled for, as TVM's JSON object."""
        return self.manifest.target

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The weights by name, in the order of the entries' arguments; copies of those that a GPU holds."""
        return self._weights.arrays()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, scales and metadata among them."""
        return self._weights.nbytes

    @property
    def weight_addresses(self) -> dict[int, int]:
        """Where each weight lies in the memory of the device, and its bytes."""
        return self._weights.addresses

    @property
    def generation(self) -> GenerationSpec:
        """What generating text needs to know.

        Raises
        ------
        GenerationError
            When the model is not a causal language model.
        """
        if self.manifest.generation is None:
            raise GenerationError(
                f"the model ({self.manifest.source.get('architecture')}) is not a causal language model: call it with "
                "its inputs instead."
            )
        return self.manifest.generation

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the source model."""
        return TextTokenizer(self.tokenizer_files)

    @property
    def threads(self) -> int:
        """Threads that kernels run on.

        What was set here; else the environment variable TVM_NUM_THREADS; else what the model was built for, as far as
        this process may use so many cores.
        """
        if self._threads is not None:
            return self._threads
        if (value := os.environ.get("TVM_NUM_THREADS", "")).isdecimal() and int(value) > 0:
            return int(value)
        return min(self.manifest.num_threads or host_cores(), host_cores())

    @threads.setter
    def threads(self, count: int) -> None:
        if count < 1:
            raise GenerationError(f"threads={count}: expected at least 1.")
        self._threads = min(count, host_cores())

    def call(self, entry: str, *inputs: Any) -> Any:
        """Run an entry function on TVM tensors of the device, the weights appended; nothing is copied.

        Raises
        ------
        GenerationError
            When the code was compiled for another CPU than this one.
        TargetError
            When the device has no memory left for what the entry computes.
        TargetError, ArtifactError, DependencyError
            As `prepare`, in the first call.
        """
        if self._missing:
            raise GenerationError(
                f"this CPU lacks {', '.join(self._missing)}, which the model was compiled for: build it "
                f"{other_target(self.manifest)}, or save it and load it on a CPU that has them."
            )
        self.prepare()
        with self._lock:  # the virtual machine keeps its frames in itself: one call at a time
            use_threads(self.threads)
            with self.device.room_for(f"the tensors that {entry} computes"), self.device.stream():
                return self._entries[entry](*inputs, *self._weights.tensors)

    def __call__(self, *inputs: Any) -> Any:
        """Run the model.

        Parameters
        ----------
        *inputs
            Token ids `[n]` or `[1, n]` for a causal language model; otherwise the inputs of entry `main` as arrays.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            float32 logits `[*ids.shape, vocab_size]` of every position; otherwise what `main` returns.

        Raises
        ------
        GenerationError
            When the inputs are not what the model takes.
        """
        if "main" in self.manifest.entries:
            return self._main(inputs)
        if len(inputs) != 1:
            raise GenerationError(f"found {len(inputs)} inputs, expected one: the token ids.")
        ids = np.asarray(inputs[0])
        if ids.ndim == 2 and ids.shape[0] == 1:
            return self(ids[0])[None]
        return Session(self).prefill(check_prompt(ids, self.generation), all_logits=True)

    def _main(self, inputs: Sequence[Any]) -> Any:
        expected = self.manifest.entries["main"].inputs
        if len(inputs) != len(expected):
            names = ", ".join(spec.name for spec in expected)
            raise GenerationError(f"found {len(inputs)} inputs, expected {len(expected)}: {names}.")
        arrays = [np.asarray(value) for value in inputs]
        for array, spec in zip(arrays, expected, strict=True):
            if not _fits(array, spec):
                raise GenerationError(
                    f"input {spec.name} is {array.dtype} of shape {array.shape}: expected {spec.dtype} of shape "
                    f"{spec.shape}."
                )
        self.prepare()
        result = self.call("main", *map(self.device.from_host, arrays))
        host = self.device.to_host
        return host(result) if hasattr(result, "dtype") else tuple(map(host, result))

    @overload
    def generate(
        self,
        prompt_or_ids: str,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        *,
        chat: bool = ...,
    ) -> Generation[str]: ...

    @overload
    def generate(
        self,
        prompt_or_ids: Sequence[int] | np.ndarray,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        *,
        chat: bool = ...,
    ) -> Generation[int]: ...

    def generate(
        self,
        prompt_or_ids: str | Sequence[int] | np.ndarray,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        *,
        chat: bool = False,
    ) -> Generation[Any]:
        """Continue a prompt.

        Parameters
        ----------
        prompt_or_ids
            Text, or token ids.
        max_new_tokens
            At most this many tokens are generated.
        temperature, top_p, seed
            See `sampler`; the default picks the most likely token each time.
        chat
            The text is a user's message: it is put into the model's chat template.

        Returns
        -------
        Generation
            Iterator over pieces of text (for a text) or token ids (for ids); it computes as it is read, and its
            `stop_reason` says why it ended.

        Raises
        ------
        GenerationError
            When the prompt is empty, too long, or has ids out of the vocabulary; when an option is out of range; when
            the model has no tokenizer for a text, or is not a causal language model.
        """
        spec = self.generation
        pick = sampler(temperature, top_p, seed)
        text: TextStream | None = None
        ids: Sequence[int] | np.ndarray
        if isinstance(prompt_or_ids, str):
            if not prompt_or_ids:
                raise GenerationError("the prompt is empty: it needs at least one token.")
            ids = self.tokenizer.encode_chat(prompt_or_ids) if chat else self.tokenizer.encode(prompt_or_ids)
            text = TextStream(self.tokenizer, ids)
        else:
            if chat:
                raise GenerationError("chat=True needs a text, and the prompt is token ids.")
            ids = prompt_or_ids
        prompt = check_prompt(ids, spec)
        return Generation(Session(self), prompt, spec, max_new_tokens=max_new_tokens, pick=pick, text=text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an artefact folder, which `hwpq_tvm.load` reads.

        It is written under another name beside `path` and renamed when it is whole. An artefact that is there already
        is replaced; any other file or folder is left alone.

        Raises
        ------
        ArtifactError
            When something that is no artefact stands at `path`, or it can't be written.
        """
        from .artifact import save  # artifact.load makes a CompiledModel

        save(self, Path(path))


def _fits(array: np.ndarray, spec: TensorSpec) -> bool:
    return (
        array.dtype.name == spec.dtype
        and array.ndim == len(spec.shape)
        and all(isinstance(want, str) or want == found for want, found in zip(spec.shape, array.shape, strict=True))
    )
