"""`hwpq inspect`: what an artefact holds."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .common import Verbs, add_verb, output_console, write_json


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "inspect", "show what was done to each layer", inspect)
    parser.add_argument("artifact", metavar="DIR", type=Path, help="folder that `hwpq build --out` wrote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")


def inspect(options: argparse.Namespace) -> None:
    """Print the table of the layers and the figures of the model; nothing of the artefact is run."""
    from ..report import layer_table, model_lines
    from ..runtime.artifact import read_manifest, read_report

    manifest, report = read_manifest(options.artifact), read_report(options.artifact)
    console = output_console()
    console.print(layer_table(report), soft_wrap=False)
    console.print(f"target: {_target(manifest.target)}", markup=False)
    console.print(f"built with: hwpq_tvm {manifest.hwpq_tvm_version}, TVM {manifest.tvm_version}", markup=False)
    for line in model_lines(report):
        console.print(line, markup=False)
    if options.json:
        about = {
            "hwpq_tvm_version": manifest.hwpq_tvm_version,
            "tvm_version": manifest.tvm_version,
            "target": manifest.target,
            "required_features": manifest.required_features,
            "config": manifest.config,
            "source": manifest.source,
        }
        write_json(options.json, {**report, **about})


def _target(target: Mapping[str, Any]) -> str:
    """A target in a line, with that of the host code behind a GPU's."""
    named = [f"{key} {target[key]}" for key in ("arch", "mtriple", "mcpu", "num-cores") if key in target]
    host = f", host {_target(target['host'])}" if "host" in target else ""
    return f"{target.get('kind')} ({', '.join(named)}){host}"
