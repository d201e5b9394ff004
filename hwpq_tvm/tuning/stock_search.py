"""The search for the best schedule of a function that is no linear: MetaSchedule's own, with its stock rules."""

from collections import deque
from collections.abc import Mapping

from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule import TuneContext
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig
from tvm.s_tir.meta_schedule.database import MemoryDatabase, TuningRecord
from tvm.s_tir.meta_schedule.runner import RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import EvolutionarySearch, MeasureCandidate
from tvm.s_tir.meta_schedule.space_generator import PostOrderApply
from tvm.s_tir.schedule import Trace
from tvm.target import Target

from ..schedules.record_file import FAILED
from ..schedules.stock import DEFAULT, is_default
from .builder import Candidate
from .metaschedule import without_intrinsics
from .search import BATCH
from .stock_workload import StockPoint, StockWorkload

# Of the evolution; and the trials that a function is worth at most: functions that matter more have kernels of ours.
_POPULATION = 32
_GENERATIONS = 2
MOST_TRIALS = 64
# Samples that the cost model draws at random before it is trained.
_WARM_UP = 8


class StockSearch:
    """Proposes schedules of one function, each once, and learns from what they took.

    Parameters
    ----------
    workload
        The function.
    target
        What it is for.
    tried
        What was measured before: schedule -> seconds, None for one that failed. None of them is proposed again.
    seed
        Of the random choices, in [1, 2^31).

    Attributes
    ----------
    size
        How many schedules are proposed at most.
    exhausted
        Whether there are no more.
    """

    size = MOST_TRIALS

    def __init__(
        self,
        workload: StockWorkload,
        target: Target,
        *,
        tried: Mapping[StockPoint, float | None] | None = None,
        seed: int = 1,
    ) -> None:
        self.workload = workload
        self.exhausted = False
        self._target = target
        self._module = workload.module()
        self._database = MemoryDatabase()
        self._token = self._database.commit_workload(self._module)
        self._model = XGBModel(config=XGBConfig(nthread=1), num_warmup_samples=_WARM_UP, verbose_eval=1_000_000)
        self._known: set[StockPoint] = set()
        self._queue: deque[StockPoint] = deque()
        self._news: list[tuple[StockPoint, float]] = []
        strategy = EvolutionarySearch(
            population_size=_POPULATION, genetic_num_iters=_GENERATIONS, init_min_unmeasured=BATCH
        )
        # The rules for any CPU: those that map loops to instructions for dot products are for kernels of our own.
        generator = PostOrderApply(sch_rules="llvm", postprocs="llvm", mutator_probs="llvm")
        with without_intrinsics():
            self._context = TuneContext(
                self._module,
                target=target,
                space_generator=generator,
                search_strategy=strategy,
                rand_state=seed,
                num_threads=1,
            )
        self._context.pre_tuning(MOST_TRIALS, BATCH, self._context.generate_design_space(), self._database, self._model)
        for point, seconds in (tried or {}).items():
            self.tell(Candidate(workload, point), seconds)

    def default(self) -> Candidate:
        """The schedule that the function gets without tuning."""
        return Candidate(self.workload, StockPoint.of(DEFAULT))

    def propose(self, count: int) -> list[Candidate]:
        """Choose the schedules to measure next: at most `count`, none that was tried; empty when there are no more."""
        self._learn()
        count = min(count, MOST_TRIALS - len(self._known))
        while len(self._queue) < count and not self.exhausted:
            candidates = self._context.generate_measure_candidates() or []
            points = dict.fromkeys(self._point_of(each.sch.trace) for each in candidates)
            found = [point for point in points if point not in self._known and point not in self._queue]
            self._queue.extend(found)
            self.exhausted = not found
        chosen = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        self._known.update(chosen)
        self.exhausted = not self._queue and (self.exhausted or len(self._known) >= MOST_TRIALS)
        return [Candidate(self.workload, point) for point in chosen]

    def tell(self, candidate: Candidate, seconds: float | None) -> None:
        """Say what a schedule took; None for one that failed."""
        self._known.add(candidate.point)
        # The default has no trace of the rules' to learn from.
        if not is_default(candidate.point.trace):
            self._news.append((candidate.point, FAILED if seconds is None else seconds))

    def _learn(self) -> None:
        """Hand what came in since the last proposal to the model and the population."""
        if not self._news:
            return
        candidates = []
        for point, seconds in self._news:
            schedule = Schedule(self._module)
            Trace.apply_json_to_schedule(point.trace, schedule)
            candidates.append(MeasureCandidate(schedule, []))
            self._database.commit_tuning_record(TuningRecord(schedule.trace, self._token, [seconds], self._target))
        self._model.update(self._context, candidates, [RunnerResult([seconds], None) for _, seconds in self._news])
        self._news = []

    def _point_of(self, trace: Trace) -> StockPoint:
        # A trace's own as_json gives TVM's containers.
        return StockPoint.of(TuningRecord(trace, self._token).as_json()[0])
