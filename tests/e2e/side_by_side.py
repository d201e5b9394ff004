"""Tiny models that are compiled side by side, in processes of their own, while tests run."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from site import addsitedir

import hwpq_tvm
from hwpq_tvm import CompiledModel


@contextmanager
def compiled(
    compile_one: Callable[[str, str, Path], None], wanted: Iterable[tuple[str, str]], folder: Path
) -> Iterator[Callable[[str, str], CompiledModel]]:
    """Compile (model, scheme) in two processes; what comes back waits for one of them and loads it.

    `compile_one(model, scheme, folder)`, a function of a module of tests, builds a model and saves it.
    """
    # pytest finds `tests` by itself; the processes have to be told where it is.
    root = str(Path(__file__).parents[2])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=addsitedir, initargs=(root,)) as pool:
        results = {each: pool.submit(compile_one, *each, folder / "-".join(each)) for each in wanted}

        def load(model: str, scheme: str) -> CompiledModel:
            results[model, scheme].result()
            return hwpq_tvm.load(folder / f"{model}-{scheme}")

        try:
            yield load
        finally:
            pool.shutdown(cancel_futures=True)
