"""`hwpq completion`: a script by which a shell completes verbs, options and paths."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

from .common import Verbs, add_verb

# Metavars, as far as they are words, of what is completed as the path of a folder, or of a file or folder.
_FOLDERS, _FILES = {"DIR", "FOLDER"}, {"FILE", "MODEL"}

EXAMPLES = """\
hwpq completion bash >> ~/.bash_completion
hwpq completion zsh > ~/.zfunc/_hwpq         # with fpath=(~/.zfunc $fpath) in ~/.zshrc, before compinit
hwpq completion fish > ~/.config/fish/completions/hwpq.fish"""


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    summary = "print a script that completes hwpq's commands in a shell"
    parser = add_verb(verbs, common, "completion", summary, completion, examples=EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that reads the script")


def completion(options: argparse.Namespace) -> None:
    """Print the script."""
    import shtab

    from .main import parser  # main imports this module

    top = parser()
    for action in _actions(top):
        words = set(re.findall(r"\w+", str(action.metavar)))
        if words & _FOLDERS:
            action.complete = shtab.DIRECTORY
        elif words & _FILES:
            action.complete = shtab.FILE
    print(shtab.complete(top, options.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Arguments and options of a parser and of its verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _actions(verb)
