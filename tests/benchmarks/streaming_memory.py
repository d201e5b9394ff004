"""Peak memory of a build, against the number of layers: does it grow by more than what a compressed layer takes?

    python tests/benchmarks/streaming_memory.py --layers 1 2 3 --json result.json

Writes synthetic checkpoints with layers of a 7-billion-parameter Llama (bfloat16, a shard per layer), builds each in a
process of its own, without and with calibration, and fits a line through the peaks. What the line rises by per layer
should be the packed layer; what it starts from are the libraries, the compiler, the table of embeddings, and the
layer that is being worked on. With a memory budget, calibration keeps that much of float weights and Gram matrices on
top, however many layers there are. Nothing here runs in CI.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import LlamaConfig

INDEX_FILE = "model.safetensors.index.json"


def write_checkpoint(folder: Path, layers: int, *, hidden: int, intermediate: int, vocab: int, seed: int = 0) -> None:
    """Write a random Llama: one shard for embeddings and head, one for each layer; no two layers are alike."""
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.bfloat16) * columns**-0.5

    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 128, 1),
        num_key_value_heads=max(hidden // 128, 1),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    where: dict[str, str] = {}

    def save(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))

    ends = {"model.embed_tokens.weight": weight(vocab, hidden), "lm_head.weight": weight(vocab, hidden)}
    save(0, {**ends, "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)})
    for layer in range(layers):
        shapes = {
            **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"},
            **{f"mlp.{name}_proj": (intermediate, hidden) for name in ("gate", "up")},
            "mlp.down_proj": (hidden, intermediate),
        }
        tensors = {f"model.layers.{layer}.{name}.weight": weight(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        save(layer + 1, tensors)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Build in this process, and say what it took."""
    import hwpq_tvm
    from hwpq_tvm.calibration import Calibration
    from hwpq_tvm.memory import peak_memory

    calibration = None
    if options["tokens"]:
        windows = np.random.default_rng(0).integers(0, options["vocab"], (options["windows"], options["tokens"]))
        calibration = Calibration(windows)
    scheme = hwpq_tvm.LayerScheme(sparsity="2:4", dtype="int8", reconstruct=options["reconstruct"])
    before = peak_memory()
    model = hwpq_tvm.build(
        options["folder"],
        "cpu",
        config=hwpq_tvm.HWPQConfig(default=scheme),
        calibration=calibration,
        max_seq_len=options["max_seq_len"],
        memory_budget=options["memory_budget"],
        progress=False,
    )
    packed = sum(array.nbytes for array in model.params.values())
    return {"before": before, "peak": peak_memory(), "packed": packed, "seconds": model.report["seconds"]}


def _measure_apart(options: dict[str, Any]) -> dict[str, Any]:
    """Measure in a new process: a peak can't be taken back."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(options)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--windows", type=int, default=2, help="calibration windows")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a calibration window")
    parser.add_argument("--reconstruct", default="none", choices=["none", "cg", "iht"])
    parser.add_argument("--memory-budget", type=float, default=0, metavar="GB", help="what calibration may keep")
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
        return

    results: dict[str, list[dict[str, Any]]] = {"without calibration": [], "with calibration": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for layers in sorted(arguments.layers):
            path = Path(folder) / f"{layers}"
            sizes = {"hidden": arguments.hidden, "intermediate": arguments.intermediate, "vocab": arguments.vocab}
            write_checkpoint(path, layers, **sizes)
            for name, found in results.items():
                options = {
                    "folder": str(path),
                    "vocab": arguments.vocab,
                    "windows": arguments.windows,
                    "tokens": arguments.tokens if name == "with calibration" else 0,
                    "reconstruct": arguments.reconstruct if name == "with calibration" else "none",
                    "memory_budget": int(arguments.memory_budget * 1e9),
                    "max_seq_len": arguments.max_seq_len,
                }
                found.append({"layers": layers, **_measure_apart(options)})
            shutil.rmtree(path)

    float_layer = 4 * (4 * arguments.hidden**2 + 3 * arguments.hidden * arguments.intermediate)
    table = Table(title="peak resident memory of a build, GB")
    for column in ("", "layers", "before", "peak", "packed", "peak/layer", "packed/layer", "s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    slopes: dict[str, dict[str, float]] = {}
    for name, found in results.items():
        count = [one["layers"] for one in found]
        if len(count) > 1:
            slopes[name] = {
                what: float(np.polyfit(count, [one[what] for one in found], 1)[0])
                for what in found[0]
                if what in ("peak", "packed")
            }
        for i, one in enumerate(found):
            last = i == len(found) - 1 and name in slopes
            table.add_row(
                name if i == 0 else "",
                str(one["layers"]),
                *(f"{one[what] / 1e9:.2f}" for what in ("before", "peak", "packed")),
                *(f"{slopes[name][what] / 1e9:.3f}" if last else "" for what in ("peak", "packed")),
                f"{sum(one['seconds'].values()):.0f}",
            )
    Console().print(table, f"one layer in float32: {float_layer / 1e9:.3f} GB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": results, "slopes": slopes, "float_layer": float_layer}))


if __name__ == "__main__":
    main()
