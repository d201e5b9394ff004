"""The folder that commands of the documentation run in, with what a reader would bring: MODEL and TEXT.txt."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hwpq_tvm import HWPQConfig
from tests.tiny_hf import save, tiny
from tests.tiny_model import EOS, V, tokenizer_files

from .checks import check_command, check_python
from .not_run import why_not_executed, why_not_run
from .pages import PYTHON, SHELL, Block, blocks, commands

_TEXT = "The river rises in the hills and runs past the old mill. In spring it floods the low meadows.\n" * 40
_CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def prepare(folder: Path) -> None:
    """Write a small language model of transformers with a tokenizer and a chat template, and a text."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tiny(
        "llama",
        **sizes,
        vocab_size=V,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        rope_parameters=None,
        attention_bias=False,
        eos_token_id=EOS,
    )
    save(model, folder / "MODEL")
    files = tokenizer_files()
    config = {**json.loads(files["tokenizer_config.json"]), "chat_template": _CHAT_TEMPLATE}
    (folder / "MODEL" / "tokenizer.json").write_bytes(files["tokenizer.json"])
    (folder / "MODEL" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "TEXT.txt").write_text(_TEXT)


class Reader:
    """Does what pages say, in a folder.

    Parameters
    ----------
    folder
        Where commands run; the process has to be there for Python.
    built
        Commands of builds whose results are in the folder already: they are not run again, since they take longest.
    """

    def __init__(self, folder: Path, built: Iterable[str] = ()) -> None:
        self.folder, self.built = folder, set(built)
        self._names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, page: Path) -> None:
        """Run the commands of a page's shell blocks and execute its Python blocks, in order.

        What is in the tables of `not_run` is checked instead; a block without such runs as it is. JSON blocks are
        configurations.
        """
        for block in blocks(page):
            if block.language == SHELL:
                self._run(block)
            elif block.language == PYTHON and why_not_executed(block.text):
                check_python(block.text)
            elif block.language == PYTHON:
                exec(compile(block.text, block.where, "exec"), self._names)
            elif block.language == "json":
                HWPQConfig.from_json(block.text)

    def _run(self, block: Block) -> None:
        found = commands(block)
        not_run = [command for command in found if why_not_run(command)]
        for command in not_run:
            check_command(command)
        left_out = {*not_run, *self.built}
        script = "\n".join(each for each in found if each not in left_out) if left_out & set(found) else block.text
        self.built |= {command for command in found if command.startswith("hwpq build")}
        if not script:
            return
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            pytest.fail(f"{block.where}: exit code {result.returncode}\n{script}\n{result.stdout}\n{result.stderr}")


def _environment() -> Mapping[str, str]:
    """The environment, with the `hwpq` and the `python` of the interpreter that runs the test."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
