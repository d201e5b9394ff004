"""Checks of examples that are not run, and of commands in the middle of a sentence: what they name has to be there."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import tomllib

from hwpq_tvm.cli.main import parser

from .pages import ROOT, words

# Where the arguments of a command end.
_SHELL_SIGNS = ("|", ">", "<", "&&")


def check_command(command: str) -> None:
    """Fail where a whole command has an option, target, extra or module that is not there."""
    found = words(command)
    if "hwpq" in found:
        # argparse exits at what it does not know.
        parser().parse_args(_until_sign(found[found.index("hwpq") + 1 :]))
    else:
        _check_other(found)


def check_mention(command: str) -> None:
    """Fail where part of a command, as a sentence may have it, names what is not there."""
    found = words(command)
    if found[0].startswith("--"):
        assert found[0] in _options(*_verbs().values()), f"{command}: no verb has this option"
    elif found[0] == "hwpq":
        given = {word for word in _until_sign(found) if word.startswith("--")}
        missing = given - _options(_verbs()[found[1]])
        assert not missing, f"{command}: no option {', '.join(missing)}"
    else:
        _check_other(found)


def check_python(code: str) -> None:
    """Fail where code can't be compiled, or calls a public function with an argument that it has not."""
    import hwpq_tvm

    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in hwpq_tvm.__all__:
            known = inspect.signature(getattr(hwpq_tvm, node.func.id)).parameters
            missing = {keyword.arg for keyword in node.keywords} - set(known)
            assert not missing, f"{node.func.id} has no argument {missing}"


def _verbs() -> dict[str, argparse.ArgumentParser]:
    """Parser of each verb."""
    actions = parser()._actions
    return next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))


def _options(*parsers: argparse.ArgumentParser) -> set[str]:
    return {option for each in parsers for option in each._option_string_actions}


def _until_sign(found: list[str]) -> list[str]:
    return found[: next((place for place, word in enumerate(found) if word in _SHELL_SIGNS), len(found))]


def _check_other(found: list[str]) -> None:
    if found[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{found[1]}:", makefile, re.MULTILINE), f"make {found[1]}: no such target"
    elif found[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for argument in found:
            if match := re.fullmatch(r"(?:\.|hwpq-tvm)\[([\w,]+)\]", argument):
                missing = set(match[1].split(",")) - set(extras)
                assert not missing, f"{argument}: no extra {', '.join(missing)}"
    elif found[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(found[2]) is not None, f"no module {found[2]}"
