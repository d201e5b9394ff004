"""The search for the best point of one workload: MetaSchedule's evolutionary search over our explicit spaces."""

from collections.abc import Mapping, Sequence

from tvm.s_tir.meta_schedule import TuneContext
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.database import MemoryDatabase, TuningRecord
from tvm.s_tir.meta_schedule.runner import RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import EvolutionarySearch, MeasureCandidate
from tvm.target import Target

from hwpq_tvm.schedules.design_space import DesignSpace, parameters_of
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.parameters import Parameters
from hwpq_tvm.schedules.record_file import FAILED

from .builder import Candidate
from .metaschedule import without_intrinsics

# Points that are proposed, built and measured together.
BATCH = 8
# What the cost model is told of points that fail, by the best time so far: it weights samples by their speed, and would
# not notice longer ones.
_FAILED_BY_BEST = 4.0

# Populations fit spaces of some hundred points: larger ones would hold each point several times.
_POPULATION = 64
_GENERATIONS = 3
_MEASURED_SHARE = 0.3
# Share of proposals that are drawn at random, whatever the model says.
_EPSILON = 0.1


class Search:
    """Proposes points of one workload, each once, and learns from what they took.

    Parameters
    ----------
    workload
        The linear.
    target
        What its kernels are for.
    points
        Its space, the default first.
    model
        Cost model of the job, which all searches share.
    tried
        What was measured before: point -> seconds, None for one that failed. None of them is proposed again.
    seed
        Of the random choices, in [1, 2^31).
    """

    def __init__(
        self,
        workload: LinearWorkload,
        target: Target,
        points: Sequence[Parameters],
        model: XGBModel,
        *,
        tried: Mapping[Parameters, float | None] | None = None,
        seed: int = 1,
    ) -> None:
        self.workload = workload
        self._target = target
        self._points = list(points)
        self._model = model
        self._space = DesignSpace(points)
        self._module = workload.module()
        self._database = MemoryDatabase()
        self._token = self._database.commit_workload(self._module)
        self._context = self._tune_context(seed)
        self._known: set[Parameters] = set()
        self._news: list[tuple[Parameters, float]] = []
        self._best = FAILED
        self._queue: list[Parameters] = []
        self._ended = False
        for point, seconds in (tried or {}).items():
            if point in self._space.points:
                self.tell(Candidate(workload, point), seconds)

    @property
    def size(self) -> int:
        """Points of the space."""
        return len(self._points)

    @property
    def exhausted(self) -> bool:
        """Whether every point of the space has been proposed or was tried before."""
        return len(self._known) >= len(self._points)

    def default(self) -> Candidate:
        """The point that is taken without tuning."""
        return Candidate(self.workload, self._points[0])

    def propose(self, count: int) -> list[Candidate]:
        """Choose the points to measure next: at most `count`, none that was tried; empty when there are no more."""
        self._learn()
        left = [point for point in self._points if point not in self._known]
        if len(left) <= 2 * BATCH:
            # A population that is to draw what is left of a space draws for seconds.
            self._ended = True
        while len(self._queue) < count and not self._ended:
            candidates = self._context.generate_measure_candidates()
            if candidates is None:
                self._ended = True
                break
            found = [
                point for candidate in candidates if (point := parameters_of(candidate.sch.mod["main"])) is not None
            ]
            self._queue += [point for point in found if point not in self._known]
        queue = [point for point in dict.fromkeys(self._queue) if point not in self._known]
        if len(queue) < count:
            queue += [point for point in left if point not in queue]
        chosen, self._queue = queue[:count], [point for point in queue[count:] if point in self._queue]
        self._known.update(chosen)
        return [Candidate(self.workload, point) for point in chosen]

    def tell(self, candidate: Candidate, seconds: float | None) -> None:
        """Say what a point took; None for one that failed."""
        self._known.add(candidate.point)
        self._news.append((candidate.point, FAILED if seconds is None else seconds))

    def _learn(self) -> None:
        """Hand what came in since the last proposal to the model and the population, at once: training takes 0.1 s."""
        if not self._news:
            return
        candidates = [MeasureCandidate(self._space.design(self._module, point), []) for point, _ in self._news]
        self._best = min(self._best, *(seconds for _, seconds in self._news))
        results = [RunnerResult([min(seconds, _FAILED_BY_BEST * self._best)], None) for _, seconds in self._news]
        for candidate, (_, seconds) in zip(candidates, self._news, strict=True):
            record = TuningRecord(candidate.sch.trace, self._token, [seconds], self._target)
            self._database.commit_tuning_record(record)
        self._model.update(self._context, candidates, results)
        self._news = []

    def _tune_context(self, seed: int) -> TuneContext:
        strategy = EvolutionarySearch(
            population_size=_POPULATION,
            init_measured_ratio=_MEASURED_SHARE,
            init_min_unmeasured=1,
            genetic_num_iters=_GENERATIONS,
            eps_greedy=_EPSILON,
        )
        with without_intrinsics():
            context = TuneContext(
                self._module,
                target=self._target,
                space_generator=self._space.generator(seed),
                search_strategy=strategy,
                rand_state=seed,
                num_threads=1,
            )
        designs = context.generate_design_space()
        context.pre_tuning(len(self._points) + BATCH, BATCH, designs, self._database, self._model)
        return context
