"""Tiny models of many architectures, compiled side by side in processes of their own."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import hwpq_tvm
from hwpq_tvm import CompiledModel, HWPQConfig, LayerScheme
from tests.tiny_hf import tiny

SCHEMES = {
    "float32": HWPQConfig(default=LayerScheme(None, "float32"), lm_head=LayerScheme(None, "float32")),
    "int8": HWPQConfig(default=LayerScheme(None, "int8")),
}
# Positions of the cache, and sequences that are computed together.
LENGTH = 48
BATCH = 3


def model_of(architecture: str) -> PreTrainedModel:
    """The same random model in every process; it never ends a text by itself."""
    return tiny(architecture, seed=5, eos_token_id=None)


def compile_one(architecture: str, scheme: str, folder: Path) -> None:
    """Build a model and save it."""
    import torch

    torch.set_num_threads(1)
    built = hwpq_tvm.build(
        model_of(architecture),
        "cpu",
        config=SCHEMES[scheme],
        calibration=None,
        max_batch=BATCH,
        max_seq_len=LENGTH,
        progress=False,
    )
    built.save(folder)


@contextmanager
def compiled(wanted: Iterable[tuple[str, str]], folder: Path) -> Iterator[Callable[[str, str], CompiledModel]]:
    """Compile (architecture, scheme) in two processes; what comes back waits for one of them and loads it."""
    # The processes search modules where this one does, and pytest imports tests without a place for them.
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        results: dict[tuple[str, str], Future[None]] = {
            each: pool.submit(compile_one, *each, folder / "-".join(each)) for each in wanted
        }

        def load(architecture: str, scheme: str) -> CompiledModel:
            results[architecture, scheme].result()
            return hwpq_tvm.load(folder / f"{architecture}-{scheme}")

        try:
            yield load
        finally:
            pool.shutdown(cancel_futures=True)
