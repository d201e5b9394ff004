"""Feeds sample text through the float module, made observable by `relax_passes`, on the host whatever the target."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import tvm

from .config import HWPQConfig, LayerScheme
from .errors import CalibrationError
from .importers import ImportedModel
from .progress import track
from .relax_passes.compress_linears import CompressLinears
from .relax_passes.linears import OUTPUT_NAMES
from .relax_passes.observe_inputs import OBSERVE, ObserveInputs
from .relax_passes.pipeline import compile_module
from .relax_passes.plan import make_plan
from .runtime.tvm_runtime import VirtualMachine, as_array, as_tensor, use_threads
from .targets import host_target

WINDOW_LENGTH = 512
WINDOWS = 8

_FLOAT32 = HWPQConfig(default=LayerScheme(None, "float32"), lm_head=LayerScheme(None, "float32"))


@dataclass(frozen=True, slots=True)
class InputSquares:
    """What calibration found.

    Attributes
    ----------
    sums
        Name of each sum -> `s [K]` float64, `s[k] = sum over tokens of x[k]^2` (the diagonal of the
        Hessian of the layer's squared output error, up to a factor).
    tokens
        How many tokens were seen.
    source
        Where the text came from.
    """

    sums: dict[str, np.ndarray]
    tokens: int
    source: str


def calibration_windows(
    calibration: "str | Path", imported: ImportedModel, *, windows: int = WINDOWS, window_length: int = WINDOW_LENGTH
) -> tuple[list[np.ndarray], str]:
    """Token windows of a calibration text.

    Parameters
    ----------
    calibration
        `"default"` for the text that ships with the package, else the path of a UTF-8 text file.
    imported
        The model, for its tokenizer and its longest sequence.
    windows, window_length
        How many windows to take at most, evenly spread over the text, and of how many tokens.

    Returns
    -------
    tuple
        Windows of token ids (int64), and a word on where they are from.

    Raises
    ------
    CalibrationError
        When the file is missing, no text, or empty, or the model has no tokenizer.
    """
    if calibration == "default":
        source = "the text that ships with hwpq_tvm"
        text = resources.files("hwpq_tvm").joinpath("data/calibration.txt").read_text(encoding="utf-8")
    else:
        source = str(calibration)
        try:
            text = Path(calibration).read_text(encoding="utf-8")
        except OSError as error:
            raise CalibrationError(
                f"calibration file {source}: {error.strerror}; name a UTF-8 text file, or switch calibration off "
                "(calibration=None, --calibration none)."
            ) from error
        except UnicodeDecodeError as error:
            raise CalibrationError(f"calibration file {source}: not UTF-8 text ({error.reason}).") from error
    if not text.strip():
        raise CalibrationError(f"calibration file {source} is empty: expected UTF-8 text, a few 10 KB of it.")
    if "tokenizer.json" not in imported.tokenizer_files:
        raise CalibrationError(
            "the model comes without tokenizer.json, so calibration text can't be tokenized: give a folder to which "
            "both model and tokenizer were written by save_pretrained, or switch calibration off (calibration=None, "
            "--calibration none)."
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(imported.tokenizer_files["tokenizer.json"].decode())
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
    if ids.size == 0:
        raise CalibrationError(f"calibration text {source}: the model's tokenizer makes no token of it.")
    if ids.max() >= imported.metadata.vocab_size:
        raise CalibrationError(
            f"the tokenizer gives token {ids.max()}, but the model knows {imported.metadata.vocab_size} tokens: "
            "tokenizer and model do not belong together; give the model's own tokenizer files."
        )
    length = min(window_length, imported.metadata.max_seq_len)
    starts = range(0, max(len(ids) - length, 0) + 1, length)
    chosen = np.linspace(0, len(starts) - 1, min(windows, len(starts))).round().astype(int)
    return [ids[starts[i] : starts[i] + length] for i in chosen], source


def observe(
    imported: ImportedModel, inputs: dict[str, str], windows: Iterable[np.ndarray], source: str, *, progress: bool
) -> InputSquares:
    """Run token windows through the float model and add up the squares of the linears' inputs.

    Parameters
    ----------
    imported
        The float model.
    inputs
        Weight name -> name of the sum of its input, one weight per distinct input.
    windows
        Token ids, one window at a time, each starting from an empty cache.
    source
        Where the windows are from, for the report.
    progress
        Whether to show progress.

    Returns
    -------
    InputSquares
        Sums over all tokens, added up in float64.
    """
    windows = list(windows)
    mod = tvm.transform.Sequential([ObserveInputs("prefill", inputs)])(imported.module)
    # Its linears run on the float32 kernel: TVM's stock matrix product would take minutes.
    plan = make_plan(mod, (OBSERVE,), _FLOAT32, calibrated=False)
    mod = tvm.transform.Sequential([CompressLinears(plan, (OBSERVE,))])(mod)
    function = mod[OBSERVE]
    names = [str(name) for name in function.attrs[OUTPUT_NAMES]]
    target = host_target()
    with tempfile.TemporaryDirectory(prefix="hwpq-calibrate-") as folder:
        library = Path(folder) / "observe.so"
        compile_module(mod, target, library)
        run = VirtualMachine(library).entry(OBSERVE)
    use_threads(int(target.attrs["num-cores"]))
    first = int(function.attrs["num_input"])
    weights = [as_tensor(imported.parameters.load(str(param.name))) for param in function.params[first:]]
    cache = as_tensor(np.zeros(imported.metadata.kv_cache_shape, np.float32))
    past = as_tensor(np.zeros(imported.metadata.kv_cache_shape[2], np.int32))
    sums = [np.zeros(int(value.shape.values[0])) for value in function.ret_ty.fields]
    for ids in track(windows, "calibrate", progress):
        results = run(as_tensor(ids[None]), as_tensor(np.arange(len(ids))), past, cache, *weights)
        for total, value in zip(sums, results, strict=True):
            total += as_array(value)
    return InputSquares(dict(zip(names, sums, strict=True)), sum(len(ids) for ids in windows), source)
