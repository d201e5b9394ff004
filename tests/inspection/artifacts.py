"""Artefact folders without code and weights: a manifest and a report, which is all that inspecting reads."""

import hashlib
import json
from pathlib import Path

import tiny_model

from hwpq_tvm.inspection.artifact_facts import Artifact, read_artifacts

BLOCKS, HIDDEN, INNER, VOCABULARY = 3, 64, 128, 256
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
OTHER_BYTES = 4 * HIDDEN * (2 * BLOCKS + 1)  # norms


def layer(name, shape, scheme="2:4 int8", bits=5.25, error=0.2, **changes):
    """A layer of a report."""
    fields = {
        "name": name,
        "shape": list(shape),
        "scheme": scheme,
        "reconstruct": None,
        "kernel": {"decode": "avx2.gemv", "prefill": "avx2.gemm"},
        "schedule": {"decode": "default", "prefill": "tuned"},
        "record": {},
        "tuned": {},
        "rivals": {},
        "bits_per_weight": bits,
        "relative_error": error,
        "relative_error_of": "output",
        "sqnr_db": 10.0,
        "zeros": 0.5,
        "skipped": None,
        "warnings": [],
    }
    return {**fields, **changes}


def report(scheme="2:4 int8", bits=5.25, error=0.2, blocks=BLOCKS, **changes):
    """A report: `blocks` blocks of four layers, and a head in dense int8."""
    layers = [
        layer(f"model.layers.{block}.{name}", shape, scheme, bits, error * (1 + block / 10))
        for block in range(blocks)
        for name, shape in SHAPES.items()
    ]
    layers.append(layer("lm_head", (VOCABULARY, HIDDEN), "dense int8", 8.5, 0.01))
    total = sum(N * K for N, K in (each["shape"] for each in layers))
    stored = sum(each["shape"][0] * each["shape"][1] * each["bits_per_weight"] / 8 for each in layers)
    model = {
        "architecture": "TinyForCausalLM",
        "source": "tiny",
        "source_format": "torch",
        "source_bytes": 4 * total,
        "bits_per_weight": 8 * stored / total,
        "weight_bytes": round(stored) + OTHER_BYTES,
        "kv_cache_bytes": 1000,
    }
    about = {"calibration": {"tokens": 512, "source": "a text"}, "seconds": {"compress": 2.0}, "warnings": []}
    return {"layers": layers, "model": model, **about, **changes}


def write(folder: Path, content=None, **changes) -> Path:
    """Write an artefact's manifest and report; `changes` are fields of the manifest."""
    folder.mkdir(parents=True)
    text = json.dumps(report() if content is None else content)
    (folder / "report.json").write_text(text)
    files = {"report.json": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(tiny_model.manifest(files=files, **changes).to_json())
    return folder


def artifact(folder: Path, content=None, **changes) -> Artifact:
    """Write an artefact, and read it."""
    return read_artifacts([write(folder, content, **changes)])[0]


def figures(prefill=1000.0, decode=100.0, linears=None):
    """What `hwpq bench --json` says of a model, with a profile where `linears` (weight -> seconds) are given."""
    found = {
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
        "prompt_length": 256,
        "context": 256,
        "repeat": 5,
        "prefill": [{"prompt_length": 256, "tokens_per_second": prefill, "quartiles": [0.9 * prefill, 1.1 * prefill]}],
        "decode": [{"context": 256, "tokens_per_second": decode, "quartiles": [0.9 * decode, 1.1 * decode]}],
    }
    if linears is None:
        return found
    parts = {"linears": sum(linears.values()), "attention": 1e-3, "other kernels": 2e-4, "virtual machine": -1e-5}
    return {**found, "profile": {"decode": {"linears": linears, "parts": parts}}}


CHOICE = {
    "budget": {"kind": "max_perplexity_increase", "value": 0.1},
    "tokens": 512,
    "float_perplexity": 20.0,
    "overhead_seconds": 1e-3,
    "times": "measured here",
    "verdict": ["2:4 earned its place in 1 of 2 units."],
    "frontier": [
        {
            "name": f"point {place}",
            "perplexity": 20.0 + place,
            "perplexity_source": "predicted",
            "decode_tokens_per_second": 100.0 + 10 * place,
            "speed_source": "predicted",
            "weight_bytes": 10**6 - 10**5 * place,
            "layers": {"2:4 int8": place},
        }
        for place in range(3)
    ],
    "rivals": [
        {
            "name": "dense int4",
            "perplexity": 21.5,
            "perplexity_source": "measured, float activations",
            "decode_tokens_per_second": None,
            "speed_source": "predicted",
            "weight_bytes": 8 * 10**5,
            "layers": {"dense int4 g64": 12},
        }
    ],
    "checked": [
        {
            "name": "the choice",
            "perplexity": 21.9,
            "perplexity_source": "measured",
            "decode_tokens_per_second": 118.0,
            "speed_source": "measured",
            "weight_bytes": 85 * 10**4,
            "layers": {"2:4 int8": 1},
        }
    ],
    "units": [
        {
            "name": "model.layers.0.self_attn.q_proj+k_proj",
            "layers": ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"],
            "chosen": "2:4 int8",
            "options": {
                "2:4 int8": {"loss": 0.001, "seconds": 1e-5, "bytes": 100},
                "dense int4 g64": {"loss": 0.0005, "seconds": 1.1e-5, "bytes": 90},
            },
        }
    ],
}
