"""Compiled models beside other runtimes on the same model: same prompts, same threads, in turns in one run.

    python tests/benchmarks/peers.py [DIR ...] --json result.json
    python tests/benchmarks/peers.py DIR --peer "llama.cpp Q4_0" --python llama.cpp=other/bin/python --repeat 9

Every runtime gets a process of its own (see peer_worker.py), so that their thread pools don't meet; the processes run
by turns (A B C A B C ...), with a pause between the turns in which the threads of the last one fall asleep. Prompts are
random ids, new ones in every turn, the same for all. The peers read the GGUF file that the artefacts were built from
(or `--gguf`), or convert it themselves; what they write stays in `--work-dir`, so that a second run finds it. Peers
that are not installed, or crash, are left out with a word; `--python` names the interpreter of an environment that has
one.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hwpq_tvm.cpu import host_cores
from hwpq_tvm.progress import track
from hwpq_tvm.runtime.manifest import Manifest

WORKER = Path(__file__).with_name("peer_worker.py")
PEERS = ("llama.cpp Q4_0", "llama.cpp Q8_0", "ONNX Runtime int4", "OpenVINO", "OpenVINO float32", "torch float32")
# For machines where llama.cpp's AMX code crashes; on others, these are slower than it can be.
PLAIN = ("llama.cpp Q4_0 plain", "llama.cpp Q8_0 plain")
OURS = "hwpq_tvm"

PAUSE = 0.5  # seconds
PHASES = ("prefill", "decode")


class Failure(Exception):
    """A runtime can't take part, or no longer."""


class Contestant:
    """A runtime with a model, in a process of its own, and what its turns took."""

    def __init__(self, name: str, runtime: str, python: str, model: Path, threads: int, context: int) -> None:
        self.name = name
        self.ours = runtime == OURS
        files = [model] if model.is_file() else [file for file in model.rglob("*") if file.is_file()]
        self.file_bytes = sum(file.stat().st_size for file in files)
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [python, str(WORKER), "serve", runtime, str(model), str(threads), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.versions = self._answer()

    def turn(self, ids: list[int], new_tokens: int, *, keep: bool) -> None:
        """Run once, and note the times unless it is a warm-up."""
        assert self._process.stdin
        time.sleep(PAUSE)
        try:
            self._process.stdin.write(json.dumps({"ids": ids, "new_tokens": new_tokens}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer tells
        answer = self._answer()
        if len(answer["tokens"]) != new_tokens + 1:
            raise Failure(f"{self.name} gave {len(answer['tokens'])} tokens, expected {new_tokens + 1}")
        if keep:
            for phase in PHASES:
                self.seconds[phase].append(answer[f"{phase}_seconds"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        # What it never read is still to be flushed.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            end = self._log.read()[-2000:].decode(errors="replace")
            raise Failure(f"{end}\n{self.name} ended with exit code {self._process.wait()}")
        return json.loads(line)


def prepared(peer: str, python: str, source: Path, folder: Path) -> Path:
    """What `peer` runs."""
    command = [python, str(WORKER), "prepare", peer, str(source), str(folder)]
    # Nothing here may fetch a model.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise Failure(f"{result.stderr[-2000:]}\n{peer} can't prepare {source}")
    answer = json.loads(result.stdout)
    if "missing" in answer:
        raise Failure(f"{peer} is not installed ({answer['missing']}). Run: {answer['install']}")
    return Path(answer["model"])


def figures(contestant: Contestant, tokens: dict[str, int]) -> dict[str, Any]:
    """Median and quartiles in tokens per second, and the seconds of every turn."""
    result: dict[str, Any] = {}
    for phase, seconds in contestant.seconds.items():
        rates = [tokens[phase] / value for value in seconds]
        result[phase] = {
            "tokens_per_second": statistics.median(rates),
            "quartiles": np.quantile(rates, (0.25, 0.75)).tolist(),
            "seconds": seconds,
        }
    return {"versions": contestant.versions, "file_bytes": contestant.file_bytes, **result}


def ratio(ours: Contestant, peer: Contestant, phase: str) -> float:
    """How many times as fast: the median over the turns, so that what slowed down a whole turn drops out."""
    pairs = zip(peer.seconds[phase], ours.seconds[phase], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def speed_table(result: dict[str, Any], title: str) -> Table:
    """Medians and quartiles of everyone."""
    table = Table("", title=title)
    for heading in ("file MB", "prefill tok/s", "quartiles", "decode tok/s", "quartiles"):
        table.add_column(heading, justify="right")
    for name, value in result.items():
        cells = [f"{value['file_bytes'] / 1e6:.1f}"]
        for phase in PHASES:
            low, high = value[phase]["quartiles"]
            cells += [f"{value[phase]['tokens_per_second']:.1f}", f"{low:.1f} - {high:.1f}"]
        table.add_row(name, *cells)
    return table


def ratio_table(contestants: list[Contestant]) -> Table:
    """Ours against every peer: prefill / decode."""
    peers = [contestant for contestant in contestants if not contestant.ours]
    table = Table("times as fast: prefill / decode", *(peer.name for peer in peers))
    for mine in contestants:
        if mine.ours:
            table.add_row(
                mine.name, *(" / ".join(f"{ratio(mine, peer, phase):.2f}" for phase in PHASES) for peer in peers)
            )
    return table


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="compare compiled models with other runtimes")
    parser.add_argument("artifacts", nargs="*", type=Path, metavar="DIR", help="default: those of `hwpq demo`")
    parser.add_argument("--gguf", type=Path, help="the peers' model (default: what the first artefact came from)")
    parser.add_argument("--peer", action="append", choices=PEERS + PLAIN, help=f"default: {', '.join(PEERS)}")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="interpreter for peers whose name starts with PEER, or for all peers when PEER= is left out",
    )
    parser.add_argument("--work-dir", type=Path, default=Path(".demo/peers"), help="for the peers' files")
    parser.add_argument("--threads", type=int, default=host_cores(), help="default: the cores of this machine")
    parser.add_argument("--prompt-length", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.artifacts = options.artifacts or sorted(path.parent for path in Path(".demo").glob("*/manifest.json"))
    if not options.artifacts:
        parser.error("no artefacts: name some, or run `hwpq demo` here first")
    return options


def interpreter(peer: str, choices: list[str]) -> str:
    """The last choice that fits; an absolute path that keeps a virtual environment's link as it is."""
    python = sys.executable
    for choice in choices:
        prefix, _, path = choice.rpartition("=")
        if peer.startswith(prefix):
            python = os.path.abspath(path)
    return python


def main() -> None:
    """Measure, print the tables, write the JSON."""
    options = arguments()
    manifest = Manifest.from_json((options.artifacts[0] / "manifest.json").read_text())
    if manifest.generation is None:
        sys.exit(f"{options.artifacts[0]} is not a causal language model")
    source = (options.gguf or Path(manifest.source["path"])).absolute()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    run = (options.threads, options.prompt_length + options.new_tokens + 1)
    contestants: list[Contestant] = []
    with contextlib.ExitStack() as processes:
        for peer in options.peer or PEERS:
            python = interpreter(peer, options.python)
            try:
                model = prepared(peer, python, source, options.work_dir.absolute())
                contestants.append(Contestant(peer, peer, python, model, *run))
            except Failure as failure:
                print(f"skipped: {failure}", file=sys.stderr)
            else:
                processes.callback(contestants[-1].close)
        for path in options.artifacts:
            contestants.append(Contestant(f"{OURS} {path.name}", OURS, sys.executable, path, *run))
            processes.callback(contestants[-1].close)
        for turn in track(range(options.repeat + 1), "turns", True):
            rng = np.random.default_rng(turn)
            ids = rng.integers(0, manifest.generation.vocab_size, options.prompt_length).tolist()
            for contestant in tuple(contestants):
                try:
                    contestant.turn(ids, options.new_tokens, keep=turn > 0)
                except Failure as failure:
                    if contestant.ours:
                        raise
                    print(f"left out from here on: {failure}", file=sys.stderr)
                    contestants.remove(contestant)
                    contestant.close()

    tokens = {"prefill": options.prompt_length, "decode": options.new_tokens}
    result = {contestant.name: figures(contestant, tokens) for contestant in contestants}
    console = Console(width=None if sys.stdout.isatty() else 160)
    about = {name: getattr(options, name) for name in ("threads", "prompt_length", "new_tokens", "repeat")}
    console.print(speed_table(result, ", ".join(f"{name} {value}" for name, value in about.items())))
    console.print(ratio_table(contestants))
    if options.json:
        for mine in (contestant for contestant in contestants if contestant.ours):
            peers = [contestant for contestant in contestants if not contestant.ours]
            result[mine.name]["ratios"] = {
                peer.name: {phase: ratio(mine, peer, phase) for phase in PHASES} for peer in peers
            }
        options.json.write_text(json.dumps({**about, "source": str(source), "models": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
