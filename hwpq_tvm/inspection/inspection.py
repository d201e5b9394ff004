"""Everything there is to see of one artefact or several: facts, rivals, speeds, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import choice_chart, layer_charts, size_speed_charts, summary, time_charts
from .artifact_facts import Artifact
from .comparison import Comparison, compare_artifacts
from .pictures import Picture
from .rival_sizes import rival_sizes
from .speeds import Speeds


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is to be seen of artefacts.

    Parameters
    ----------
    artifacts
        One or more.
    speeds
        Their speeds, and those of rivals; None where nothing was measured.
    """

    artifacts: tuple[Artifact, ...]
    speeds: Speeds | None = None

    @property
    def comparison(self) -> Comparison | None:
        """How the artefacts differ; None for one alone."""
        return compare_artifacts(self.artifacts, self.speeds) if len(self.artifacts) > 1 else None

    def summary(self, artifact: Artifact) -> list[str]:
        """Sum up one of the artefacts in sentences."""
        return [*summary.sentences(artifact, rival_sizes(artifact)), *self.speed(artifact)]

    def speed(self, artifact: Artifact) -> list[str]:
        """Say how fast one of the artefacts is: a sentence, or none where that was not measured."""
        if self.speeds is None or artifact.label not in self.speeds.models:
            return []
        return [summary.speed(self.speeds.models[artifact.label], self.speeds.origin)]

    def pictures(self) -> list[Picture]:
        """List the pictures that there is something to draw in."""
        found: Sequence[Picture | None] = (
            layer_charts.error_by_depth(self.artifacts),
            layer_charts.bits_by_kind(self.artifacts),
            size_speed_charts.sizes(self.artifacts, rival_sizes(self.artifacts[0])),
            None if self.speeds is None else size_speed_charts.speed(self.speeds),
            None if self.speeds is None else time_charts.decode_step(self.speeds),
            time_charts.sparse_against_dense(self.artifacts),
            time_charts.tuned_against_default(self.artifacts),
            *(choice_chart.frontier(artifact) for artifact in self.artifacts if artifact.report.get("choice")),
        )
        return [picture for picture in found if picture is not None]

    def to_json(self) -> dict[str, Any]:
        """JSON value: the report of one artefact; of several `models`, by their labels, and `comparison`."""
        models = {artifact.label: self._one(artifact) for artifact in self.artifacts}
        comparison = self.comparison
        found: dict[str, Any] = {"models": models}
        if comparison is None:
            (found,) = models.values()
        else:
            found["comparison"] = comparison.to_json()
        if self.speeds is not None:
            found["speeds"] = {"origin": self.speeds.origin, "models": dict(self.speeds.models)}
        return found

    def _one(self, artifact: Artifact) -> dict[str, Any]:
        return {
            **artifact.report,
            **artifact.about(),
            "summary": self.summary(artifact),
            "rival_weight_bytes": rival_sizes(artifact),
        }
