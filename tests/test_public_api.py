"""What a user imports: every public name is there, has help, and is typed for a strict type checker."""

import inspect
import pydoc
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hwpq_tvm

PUBLIC = [getattr(hwpq_tvm, name) for name in hwpq_tvm.__all__]
FUNCTIONS = [each for each in PUBLIC if inspect.isfunction(each)]
CLASSES = [each for each in PUBLIC if inspect.isclass(each)]


def methods(cls: type) -> list:
    """Public methods and properties that a class of ours defines."""
    own = [vars(base) for base in cls.__mro__ if base.__module__.startswith("hwpq_tvm")]
    found = {name: value for names in reversed(own) for name, value in names.items() if not name.startswith("_")}
    functions = (getattr(value, "__func__", getattr(value, "fget", value)) for value in found.values())
    return [each for each in functions if inspect.isfunction(each)]


def test_the_module_docstring_maps_every_public_name():
    table = hwpq_tvm.__doc__.split("=\n")[1]
    assert {line.split()[0] for line in table.splitlines() if line[:1].isalpha()} == set(hwpq_tvm.__all__)


def test_help_shows_every_public_name():
    text = pydoc.plain(pydoc.render_doc(hwpq_tvm))
    for name in hwpq_tvm.__all__:
        assert f"class {name}" in text or f"    {name}(" in text, f"help(hwpq_tvm) does not show {name}"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions_document_each_parameter(function):
    documented = inspect.getdoc(function)
    for name in inspect.signature(function).parameters:
        described = any(name in line.replace(",", " ").split() for line in documented.splitlines())
        assert described, f"{function.__name__}: {name} is not described"
    for section in ("Parameters", "Returns", "Raises"):
        assert f"{section}\n---" in documented, f"{function.__name__} has no {section}"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_classes_and_their_methods_have_docstrings(cls):
    assert inspect.getdoc(cls)
    for method in methods(cls):
        assert inspect.getdoc(method), f"{cls.__name__}.{method.__name__} has no docstring"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_everything_public_is_annotated(cls):
    for function in [*FUNCTIONS, *methods(cls)]:
        signature = inspect.signature(function)
        bare = [name for name, each in signature.parameters.items() if each.annotation is each.empty]
        assert bare in ([], ["self"], ["cls"]), f"{function.__qualname__}: {bare} have no types"
        assert signature.return_annotation is not signature.empty, f"{function.__qualname__}: no type of the result"


# reveal_type is mypy's own: it prints the type.
PROGRAM = """
from collections.abc import Iterator

import hwpq_tvm
from hwpq_tvm import CompiledModel, HWPQConfig, LayerScheme

config = HWPQConfig(default=LayerScheme(sparsity="2:4", dtype="int4", group_size=64), ignore=(".*down_proj",))


def answer(model: CompiledModel, prompt: str) -> str:
    pieces: Iterator[str] = model.generate(prompt, max_new_tokens=8, temperature=0.5)
    return "".join(pieces)


model = hwpq_tvm.build("MODEL", "cpu", config=config, max_seq_len=512, calibration=None)
model.save("artefact")
reveal_type(hwpq_tvm.load("artefact"))
reveal_type(model.generate("a"))
reveal_type(model.generate([1, 2, 3]))
LayerScheme(dtype="int3")
model.generate("a", temprature=1.0)
"""
EXPECTED = [
    'program.py:17: note: Revealed type is "hwpq_tvm.runtime.compiled_model.CompiledModel"',
    'program.py:18: note: Revealed type is "hwpq_tvm.runtime.generation.Generation[str]"',
    'program.py:19: note: Revealed type is "hwpq_tvm.runtime.generation.Generation[int]"',
    'program.py:20: error: Argument "dtype" to "LayerScheme" has incompatible type',
    'program.py:21: error: Unexpected keyword argument "temprature"',
]
# The package is not checked again here, and neither is what it imports.
CONFIG = """
[mypy]
[mypy-hwpq_tvm.*]
follow_imports = silent
[mypy-torch.*,tvm.*,transformers.*,numpy.*]
follow_imports = skip
"""


def test_a_strict_type_checker_knows_the_types(tmp_path):
    # One folder, as an installed package is: mypy finds no package of several in an editable install.
    package = tmp_path / "hwpq_tvm"
    shutil.copytree(Path(hwpq_tvm.__file__).parent, package)
    for part in ("relax_passes", "schedules", "tuning_logs"):
        shutil.copytree(import_module(f"hwpq_tvm.{part}").__path__[0], package / part, dirs_exist_ok=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "mypy.ini", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    told = result.stdout.splitlines()
    for start in EXPECTED:
        assert any(line.startswith(start) for line in told), result.stdout
    # Nothing else is wrong with the program.
    assert {line.split(":")[1] for line in told if ": error: " in line} == {"20", "21"}, result.stdout
