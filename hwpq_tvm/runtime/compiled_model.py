"""A compiled model: its code, weights and manifest, ready to run."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..cpu import host_cores, missing_features
from ..errors import GenerationError
from .batch_session import BatchSession
from .chat import Chat
from .device import Device, load_cuda_runtime
from .device_check import check_device, default_device, other_target
from .generation import BatchGeneration, Generation, check_prompt, sampler
from .inputs import as_inputs, input_problems
from .manifest import GenerationSpec, Manifest
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
    def weight_names(self) -> dict[int, str]:
        """Where each weight lies in the memory of the device, and its name."""
        return self._weights.names

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
            Token ids `[n]` or `[batch, n]` for a causal language model; otherwise the inputs of entry `main` as arrays.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            float32 logits `[*ids.shape, vocab_size]` of every position; otherwise what `main` returns, see `run`.

        Raises
        ------
        GenerationError
            When the inputs are not what the model takes.
        """
        if "main" in self.manifest.entries:
            return self.run("main", *inputs)
        if len(inputs) != 1:
            raise GenerationError(f"found {len(inputs)} inputs, expected one: the token ids.")
        ids = np.asarray(inputs[0])
        rows = list(ids) if ids.ndim == 2 else [ids]
        prompts = [check_prompt(row, self.generation) for row in rows]
        logits = np.stack(BatchSession(self).prefill(prompts, all_logits=True))
        return logits if ids.ndim == 2 else logits[0]

    def run(self, entry: str, *inputs: Any) -> Any:
        """Run an entry function on arrays.

        Parameters
        ----------
        entry
            Its name; `manifest.entries` has them all, with the names, types and shapes of their inputs.
        *inputs
            Its inputs as arrays (or what NumPy makes arrays of), without the weights.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            What it returns: an array, or a tuple of arrays if there are several.

        Raises
        ------
        GenerationError
            When there is no such entry, or the inputs are not what it takes.
        """
        if entry not in self.manifest.entries:
            raise GenerationError(f"the model has no entry {entry!r}: expected {' or '.join(self.manifest.entries)}.")
        spec = self.manifest.entries[entry]
        arrays = as_inputs(spec, inputs)
        if problems := input_problems(spec, arrays):
            raise GenerationError("\n".join(problems))
        self.prepare()
        result = self.call(entry, *map(self.device.from_host, arrays))
        outputs = [result] if hasattr(result, "dtype") else list(result)
        # The next call may reuse the memory of what this one returned.
        found = tuple(np.array(self.device.to_host(output)) for output in outputs)
        return found[0] if len(found) == 1 else found

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
        return Generation(self._generate([prompt_or_ids], max_new_tokens, [sampler(temperature, top_p, seed)], chat))

    @overload
    def generate_batch(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        *,
        chat: bool = ...,
    ) -> BatchGeneration[str]: ...

    @overload
    def generate_batch(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        *,
        chat: bool = ...,
    ) -> BatchGeneration[int]: ...

    def generate_batch(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int] | np.ndarray],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        *,
        chat: bool = False,
    ) -> BatchGeneration[Any]:
        """Continue several prompts of any lengths at once; each answer is what `generate` would give.

        Parameters
        ----------
        prompts
            Texts, or token ids of each prompt; at most as many as the `max_batch` that the model was compiled for.
        max_new_tokens
            At most this many tokens are generated after each prompt.
        temperature, top_p, seed
            See `sampler`; prompt i is sampled with the random numbers of `seed + i`.
        chat
            The texts are users' messages: each is put into the model's chat template.

        Returns
        -------
        BatchGeneration
            Iterator over (number of the prompt, piece): pieces of text for texts, or token ids for ids. It computes as
            it is read; its `token_ids` and `stop_reasons` have an entry for each prompt.

        Raises
        ------
        GenerationError
            As `generate`, naming the prompt; and when there are none, too many, or texts and ids among each other.
        """
        if isinstance(prompts, str):
            raise GenerationError("prompts is one text: expected a list of texts, or of token ids.")
        if not len(prompts):
            raise GenerationError("there are no prompts: expected at least one.")
        if len({isinstance(prompt, str) for prompt in prompts}) > 1:
            raise GenerationError("some prompts are texts and some are token ids: expected all of one kind.")
        seeds = [None if seed is None else seed + row for row in range(len(prompts))]
        return self._generate(prompts, max_new_tokens, [sampler(temperature, top_p, each) for each in seeds], chat)

    def _generate(
        self,
        prompts: Sequence[str | Sequence[int] | np.ndarray],
        max_new_tokens: int,
        picks: Sequence[Callable[[np.ndarray], int]],
        chat: bool,
    ) -> BatchGeneration[Any]:
        spec = self.generation
        if len(prompts) > spec.batch:
            raise GenerationError(
                f"found {len(prompts)} prompts: the model was compiled for max_batch={spec.batch}. Give fewer at a "
                "time, or build with a larger max_batch."
            )
        texts: list[TextStream] = []
        encoded: list[list[int]] = []
        for row, prompt in enumerate(prompts):
            try:
                encoded.append(check_prompt(self._ids(prompt, chat), spec))
            except GenerationError as error:
                if len(prompts) == 1:
                    raise
                raise GenerationError(f"prompts[{row}]: {error}") from error
            if isinstance(prompt, str):
                texts.append(TextStream(self.tokenizer, encoded[-1]))
        return BatchGeneration(
            BatchSession(self), encoded, spec, max_new_tokens=max_new_tokens, picks=picks, texts=texts or None
        )

    def _ids(self, prompt: str | Sequence[int] | np.ndarray, chat: bool) -> Sequence[int] | np.ndarray:
        if not isinstance(prompt, str):
            if chat:
                raise GenerationError("chat=True needs a text, and the prompt is token ids.")
            return prompt
        if not prompt:
            raise GenerationError("the prompt is empty: it needs at least one token.")
        return self.tokenizer.encode_chat(prompt) if chat else self.tokenizer.encode(prompt)

    def chat(self, system: str | None = None) -> Chat:
        """Start a conversation by the model's chat template.

        Parameters
        ----------
        system
            What the model is told before the first message; None leaves it to the template.

        Returns
        -------
        Chat
            `send` says something and streams the answer; what was said, and the KV cache, are kept between messages.

        Raises
        ------
        GenerationError
            When the model has no chat template, or is not a causal language model.
        """
        return Chat(self, system)

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
