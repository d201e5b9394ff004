"""The threshold of unstructured sparsity beside an exact top-k, on every linear of a real model.

    python -m tests.benchmarks.ewma_selection --calibration wiki.valid.txt --sparsity 0.5

For every layer: the zeros of the row that misses the target most, and the loss `sum (w - v)^2 s[k]` against that of
the exact top-k of each row. Nothing here runs in CI.
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import torch
import tvm
from tokenizers import Tokenizer

from hwpq_tvm.demo import find_model
from hwpq_tvm.importers import import_model
from hwpq_tvm.progress import track
from hwpq_tvm.runtime.tvm_runtime import use_threads
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.compress.select import select
from hwpq_tvm.schedules.compress.selection import Ewma
from hwpq_tvm.targets import host_target

from .float_model import load_model, spread


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="the EWMA threshold beside an exact top-k")
    parser.add_argument("--calibration", type=Path, required=True, help="UTF-8 text to calibrate on")
    parser.add_argument("--model", type=Path, help="GGUF file or folder (default: the packaged SmolLM2)")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


@cache
def selection(N: int, K: int, sparsity: float) -> tvm.runtime.Executable:
    """The compiled selection of one shape."""
    target = host_target()
    func = registry.schedule(select(Ewma(sparsity), N, K), target)[0].with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": func}), target=target)


def input_squares(model: torch.nn.Module, windows: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Layer name -> sum over the tokens of the squares of its input."""
    totals: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)}

    def hook(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        totals[name] = totals.get(name, 0) + inputs[0].square().flatten(0, -2).sum(0)

    handles = [m.register_forward_pre_hook(lambda _, inputs, n=n: hook(n, inputs)) for n, m in layers.items()]
    for window in track(windows, "calibrate", True):
        model.model(torch.from_numpy(window)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return totals


def main() -> None:
    """Compare, and print the worst of all layers."""
    options = arguments()
    torch.set_num_threads(options.threads)
    use_threads(options.threads)
    path = options.model or find_model()
    files = import_model(str(path), max_batch=1, max_seq_len=options.length).tokenizer_files
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    ids = tokenizer.encode(options.calibration.read_text(encoding="utf-8"), add_special_tokens=False).ids
    model = load_model(path)
    squares = input_squares(model, spread(np.asarray(ids, np.int64), options.samples, options.length))

    modules, found = dict(model.model.named_modules()), {}
    for name, s in track(list(squares.items()), "select", True):
        weight = modules[name].weight.data
        N, K = weight.shape
        kept = tvm.runtime.empty((N, K), "float32")
        factors = s.sqrt()
        selection(N, K, options.sparsity)["main"](*(tvm.runtime.tensor(t.numpy()) for t in (weight, factors)), kept)
        share = (kept.numpy() == 0).mean(axis=1)
        scores = (weight.abs() * factors).numpy()
        order = np.argsort(scores, axis=1, kind="stable")[:, : round(K * options.sparsity)]
        exact = weight.numpy().copy()
        np.put_along_axis(exact, order, 0, axis=1)
        ours, best = (((weight.numpy() - v) ** 2 * s.numpy()).sum(dtype=np.float64) for v in (kept.numpy(), exact))
        found[name] = (np.abs(share - options.sparsity).max(), ours / best)
    for index, what in enumerate(("furthest row from the target, share of its weights", "loss / loss of exact top-k")):
        worst = max(found, key=lambda name: found[name][index])
        print(
            f"{what}: worst {found[worst][index]:.5f} ({worst}), mean {np.mean([f[index] for f in found.values()]):.5f}"
        )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
