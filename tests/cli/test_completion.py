"""`hwpq completion`, asked by the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hwpq_tvm.cli import completion, main

# Words up to the cursor -> what has to be among the answers, and what must not.
CASES = [
    (["b"], {"build", "bench"}, {"run"}),
    (["bench", "--n"], {"--new-tokens", "--no-bandwidth"}, {"--repeat"}),
    (["build", "--dtype", ""], {"int8", "int4"}, {"folder"}),
    (["completion", ""], {"bash", "zsh", "fish"}, {"file.txt"}),
    (["bench", "f"], {"folder"}, {"file.txt"}),
    (["eval", "folder", "--text", "f"], {"file.txt", "folder"}, set()),
]

BASH = """\
source ./script
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_hwpq hwpq "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    return tmp_path


def script(capsys, shell: str, folder: Path) -> Path:
    assert main.main(["completion", shell]) == 0
    path = folder / "script"
    path.write_text(capsys.readouterr().out)
    return path


def shell(name: str, *arguments: str, folder: Path) -> str:
    """What a shell writes, which has read no settings of a user's."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [name, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(("words", "present", "absent"), CASES)
def test_bash(capsys, folder, words, present, absent):
    script(capsys, "bash", folder)
    found = set(shell("bash", "--norc", "-c", BASH, "bash", "hwpq", *words, folder=folder).splitlines())
    assert present <= found
    assert not absent & found


@pytest.mark.parametrize(("words", "present", "absent"), CASES)
def test_fish(capsys, folder, words, present, absent):
    script(capsys, "fish", folder)
    asked = f"source ./script; complete -C 'hwpq {' '.join(words)}'"
    lines = shell("fish", "--no-config", "-c", asked, folder=folder).splitlines()
    found = {line.split("\t")[0].rstrip("/") for line in lines}
    assert present <= found
    assert not absent & found


def test_zsh(capsys, folder):
    text = script(capsys, "zsh", folder).read_text()
    assert text.startswith("#compdef hwpq\n")
    assert "--json[" in text
    shell("zsh", "-fn", "script", folder=folder)  # its syntax only


def test_paths_are_completed_wherever_one_is_taken():
    taken = [action for action in completion._actions(main.parser()) if action.type is Path]
    assert taken
    for action in taken:
        assert any(word in action.metavar for word in (*completion._FOLDERS, *completion._FILES)), action


def test_an_unknown_shell(capsys):
    with pytest.raises(SystemExit) as error:
        main.main(["completion", "sh"])
    assert error.value.code == main.USER_ERROR
    assert "choose from" in capsys.readouterr().err
