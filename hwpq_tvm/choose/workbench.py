"""Everything that a choice is made of: found once for a model, asked many times by the search."""

import json
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import benchmark, compiler, evaluate
from ..calibration_source import CalibrationData
from ..compressed_source import CompressedSource
from ..config import HWPQConfig
from ..cpu import missing_features
from ..errors import DependencyError, TargetError
from ..finished_layers import FinishedLayers, fingerprint
from ..importers import ImportedModel
from ..relax_passes.packing import packing_groups
from ..relax_passes.plan import Plan
from ..runtime.compiled_model import CompiledModel
from .compressed_units import CompressedUnits
from .float_model import FloatModel
from .kernel_times import KernelTimes
from .sensitivity import Sensitivity
from .texts import Texts
from .units import CANDIDATES, Assignment, Unit, chosen_members, config_of, uniform

# How decoding is measured: tokens of the prompt, new tokens, repeats.
_PROMPT, _NEW_TOKENS, _REPEAT = 32, 32, 5
# Share of a decode step that linears take, until a model is measured (SmolLM2 on two cores: 74 %).
_LINEARS_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Checked:
    """A choice that was built.

    Attributes
    ----------
    chosen
        The choice.
    model
        The compiled model.
    increase
        Natural logarithm of its perplexity by that of the float model, measured with the compiled code where it runs
        here, otherwise with its weights and float activations.
    tokens_per_second
        Measured speed of decoding; None where it does not run here.
    """

    chosen: Assignment
    model: CompiledModel
    increase: float
    tokens_per_second: float | None


@dataclass(slots=True, eq=False)
class Workbench:
    """What is known of a model, and what can be asked of a choice.

    Attributes
    ----------
    imported, compressed, float_model, sensitivity, times, texts
        What was found.
    base
        What the configuration says besides schemes.
    heads
        Weights that have the scheme of the `lm_head`.
    plan
        Plans the model with a configuration, as a build does.
    data
        What the model is calibrated on; None for nothing.
    build_options
        As `compiler.build` takes them: the model, the target and the rest.
    work_dir
        Folder for builds; None for the system's.
    overhead
        Seconds of a decode step outside the linears: estimated, until a model was measured.
    scale
        What times of kernels are multiplied with, for them to fit into the step of the model that was measured last.
    """

    imported: ImportedModel
    compressed: CompressedUnits
    float_model: FloatModel
    sensitivity: Sensitivity
    times: KernelTimes
    texts: Texts
    base: HWPQConfig
    heads: frozenset[str]
    plan: Callable[[HWPQConfig], Plan]
    data: CalibrationData | None
    build_options: Mapping[str, Any]
    work_dir: Path | None
    progress: bool
    scale: float = 1.0
    overhead: float = field(init=False)
    _float_loss: float = field(init=False)
    _losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fastest = sum(min(each.values()) for each in self.times.seconds.values())
        self.overhead = fastest * (1 / _LINEARS_SHARE - 1)
        self._float_loss = self.float_model.loss(self.texts.check, self.float_model.weights)

    @property
    def units(self) -> Sequence[Unit]:
        """The units."""
        return self.compressed.units

    @property
    def float_perplexity(self) -> float:
        """Perplexity of the float model on the text of the checks."""
        return math.exp(self._float_loss)

    def config(self, chosen: Assignment) -> HWPQConfig:
        """The configuration of a choice."""
        return config_of(self.base, self.units, chosen, self.heads)

    def weight_bytes(self, chosen: Assignment) -> int:
        """Bytes of all weights of a choice."""
        return self.rest_bytes + sum(unit.nbytes(chosen[unit.name]) for unit in self.units)

    @property
    def rest_bytes(self) -> int:
        """Bytes of what no unit has: norms, biases and the like."""
        packed = {weight for unit in self.units for weight in unit.weights}
        function = self.imported.module[self.imported.entries[0]]
        rest = [param for param in function.params[int(function.attrs["num_input"]) :] if param.name not in packed]
        return sum(
            math.prod(int(size) for size in param.ty.shape.values) * np.dtype(str(param.ty.dtype)).itemsize
            for param in rest
        )

    def tokens_per_second(self, chosen: Assignment) -> float | None:
        """Predicted speed of decoding; None where times are known in proportion only."""
        seconds = self.overhead + self.scale * self.seconds(chosen)
        return self.sequences / seconds if self.times.absolute else None

    def seconds(self, chosen: Assignment) -> float:
        """Time of the linears in a decode step, in seconds or in proportion to them."""
        return sum(self.times.seconds[unit.name][chosen[unit.name]] for unit in self.units)

    def everywhere(self, candidate: str) -> Assignment:
        """One scheme for all, as presets have it: the `lm_head` and tables of embeddings are dense int8."""
        int8 = uniform(self.units, CANDIDATES[0].name)
        kept = {unit.name for unit in self.units if not unit.runs or set(unit.weights) & self.heads}
        return {name: int8[name] if name in kept else option for name, option in uniform(self.units, candidate).items()}

    @property
    def sequences(self) -> int:
        """Sequences that run at once."""
        return int(self.build_options["max_batch"])

    def weights_increase(self, chosen: Assignment) -> float:
        """Measure ln(perplexity / that of the float model) with the weights of a choice and float activations."""
        key = json.dumps(chosen, sort_keys=True)
        if key not in self._losses:
            finished = FinishedLayers(None, {}, resume=False)
            self.compressed.layers_of(chosen, finished)
            groups = [group for _, group in chosen_members(self.units, chosen)]
            source = CompressedSource(self.imported.parameters, groups, finished)
            self._losses[key] = self.float_model.loss(self.texts.check, self.float_model.reading(source))
        return self._losses[key] - self._float_loss

    def build(self, chosen: Assignment) -> Checked:
        """Build a choice of what is compressed already, and measure it."""
        folder = Path(tempfile.mkdtemp(prefix="hwpq-choice-", dir=self.work_dir))
        config = self.config(chosen)
        try:
            planned = self.plan(config)
            finished = FinishedLayers(
                folder,
                fingerprint(self.imported, packing_groups(planned), self.data if planned.needs_calibration else None),
                resume=False,
            )
            self.compressed.layers_of(chosen, finished)
            model = compiler.build(
                **self.build_options, config=config, work_dir=folder, resume=True, progress=self.progress
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder / "layers", ignore_errors=True)
        weakref.finalize(model, shutil.rmtree, folder, True)
        return self._checked(chosen, model)

    def _checked(self, chosen: Assignment, model: CompiledModel) -> Checked:
        if not _runs_here(model):
            return Checked(chosen, model, self.weights_increase(chosen), None)
        ids = np.concatenate(self.texts.check)
        length = len(self.texts.check[0])
        result = evaluate.perplexity(model, ids, window_length=length, progress=self.progress)
        new_tokens = min(_NEW_TOKENS, model.generation.max_seq_len // 2)
        prompt = min(_PROMPT, model.generation.max_seq_len // 2)
        speed = benchmark.compare(
            {"chosen": model}, prompt_lengths=(prompt,), new_tokens=new_tokens, repeat=_REPEAT, progress=self.progress
        )["chosen"].decode_tokens_per_second
        if self.times.absolute:
            step, linears = self.sequences / speed, self.seconds(chosen)
            # Longer than the step: the machine was busier when the kernels were measured.
            self.scale = 1.0 if linears <= step else _LINEARS_SHARE * step / linears
            self.overhead = step - self.scale * linears
        return Checked(chosen, model, math.log(result.perplexity) - self._float_loss, speed)


def _runs_here(model: CompiledModel) -> bool:
    if missing_features(model.manifest.required_features):
        return False
    try:
        model.prepare()
    except (TargetError, DependencyError):
        return False
    return True
