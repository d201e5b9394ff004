"""Examples of the documentation that its test does not run, each with the reason; they are checked in another way."""

from collections.abc import Mapping

# How a command begins -> why it is not run. `check_commands` looks at what it names instead.
COMMANDS: Mapping[str, str] = {
    "python3 -m venv": "installs; the test has an environment already",
    "pip install": "installs; `make test` does it",
    'python -c "from hwpq_tvm.demo': "needs the package of the line before; tests/test_demo.py calls the function",
    "python -m tests.benchmarks": "measures for minutes",
    "python -m tvm.exec.rpc_tracker": "serves until it is stopped; tests/tuning/test_rpc.py starts one",
    "hwpq tune": "measures for minutes; tests/tuning and tests/cli/test_tune.py run jobs",
    "hwpq build MODEL --out OUT --tuning-logs": "needs what `hwpq tune` found; tests/tuning/test_autotune.py does it",
    "hwpq build MODEL --out chosen --preset auto": "measures for minutes; tests/choose does it with a small model",
    "hwpq build MODEL --out gpu": "minutes of nvcc; tests/e2e/test_gpu_models.py builds for GPUs",
    "ssh ": "needs a second machine; tests/tuning/test_rpc.py runs the server that it would start",
}
# What a Python block calls -> why it is not executed. `check_python` looks at the names and arguments instead.
PYTHON_CALLS: Mapping[str, str] = {
    " tune(": "measures for minutes; tests/tuning/test_autotune.py calls it",
    " choose_config(": "measures for minutes; tests/choose calls it",
}


def why_not_run(command: str) -> str | None:
    """Why a command is not run; None for one that is."""
    return next((why for start, why in COMMANDS.items() if command.lstrip().startswith(start)), None)


def why_not_executed(code: str) -> str | None:
    """Why a Python block is not executed; None for one that is."""
    return next((why for call, why in PYTHON_CALLS.items() if call in code), None)
