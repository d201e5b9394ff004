"""The model of lm-eval: by its own requests, and, where that package is installed, in a task."""

import importlib.util
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tiny_model import BOS, EOS, MAX_SEQ_LEN, Reference, chain, random_weights

from hwpq_tvm.errors import GenerationError

INSTALLED = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture
def harness_model(monkeypatch):
    """The class; without lm-eval, over a stand-in for the part of its base class that scores nothing."""
    if not INSTALLED:

        class TemplateLM:
            def loglikelihood(self, requests, disable_tqdm):
                pairs = [(request.args, *map(self.tok_encode, request.args)) for request in requests]
                return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

        modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
        modules["lm_eval.api.model"].TemplateLM = TemplateLM
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "hwpq_tvm.evaluation.harness_model", raising=False)
    from hwpq_tvm.evaluation.harness_model import HarnessModel

    yield HarnessModel
    monkeypatch.delitem(sys.modules, "hwpq_tvm.evaluation.harness_model", raising=False)


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def expected_score(weights, context, rest):
    logits = Reference(*weights).logits([*context, *rest])[len(context) - 1 : -1]
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return logs[np.arange(len(rest)), list(rest)].sum(), bool((logits.argmax(1) == list(rest)).all())


PAIRS = [("ab", "cd"), ("ab", "ce"), ("xyz", "c"), ("ab", "d"), ("a", "bcdefgh"), ("long context of it", " b")]


@pytest.mark.parametrize("batch", [1, 3])
def test_log_likelihoods_of_continuations(harness_model, tiny, tiny_batch, batch):
    weights = random_weights(11)
    weights[0][:, 128:] -= 20  # what it writes are characters, a byte each
    lm = harness_model({1: tiny, 3: tiny_batch}[batch](*weights), progress=False)
    greedy = bytes(Reference(*weights).greedy(list(b"ab"), 1))
    for _ in range(2):  # a second time, on a cache that holds something
        found = lm.loglikelihood(requests(*PAIRS))
        for (context, rest), (score, likeliest) in zip(PAIRS, found, strict=True):
            expected = expected_score(weights, context.encode(), rest.encode())
            assert score == pytest.approx(expected[0], rel=1e-5)
            assert likeliest == expected[1]
    (_, likeliest), (_, unlikely) = lm.loglikelihood(requests(("ab", greedy.decode()), ("ab", greedy.decode() + "zz")))
    assert likeliest
    assert not unlikely


def test_a_shared_context_is_read_once(harness_model, tiny, monkeypatch):
    model, read = tiny(*random_weights(0)), []
    call = model.call
    monkeypatch.setattr(model, "call", lambda entry, *inputs: read.append(inputs[0].shape[1]) or call(entry, *inputs))
    lm = harness_model(model, progress=False)
    lm.loglikelihood(requests(("question", " no"), ("question", " yes")))
    # "question" without its last letter, that letter with " n", and then "n" is not shared: the letter with " ye".
    assert read == [7, 3, 4]


def test_a_context_that_is_too_long_loses_its_beginning(harness_model, tiny):
    weights = random_weights(1)
    lm = harness_model(tiny(*weights), progress=False)
    ((score, _),) = lm.loglikelihood(requests(("x" * 9 + "y" * 30, "abc")))
    kept = b"y" * (MAX_SEQ_LEN + 1 - 3)
    assert score == pytest.approx(expected_score(weights, kept, b"abc")[0], rel=1e-5)


@pytest.mark.parametrize("length", [1, MAX_SEQ_LEN - 1, MAX_SEQ_LEN, MAX_SEQ_LEN + 1, 2 * MAX_SEQ_LEN + 5])
def test_rolling_log_likelihoods_predict_every_token_once(harness_model, tiny, length):
    weights = random_weights(2)
    text = bytes(np.random.default_rng(length).integers(97, 123, length))
    ids, total, size = [BOS, *text], 0.0, MAX_SEQ_LEN
    for begin in range(1, len(ids), size):
        stop = min(begin + size, len(ids))
        context = ids[max(stop - size - 1, 0) : begin]
        total += expected_score(weights, context, ids[begin:stop])[0]
    lm = harness_model(tiny(*weights), progress=False)
    assert lm.loglikelihood_rolling(requests((text.decode(),), ("",), ("a",))) == pytest.approx(
        [total, 0, expected_score(weights, [BOS], b"a")[0]], rel=1e-5
    )


def test_generation_ends_before_a_stop_string(harness_model, tiny):
    model = tiny(*chain(ord("a"), *b"bc. d\nefghijk", EOS))
    lm = harness_model(model, progress=False)
    cases = [
        (("a", {"until": ["\n", "."]}), "bc"),
        (("a", {"until": "d\ne", "max_gen_toks": 12}), "bc. "),
        (("a", {"until": [], "max_gen_toks": 3, "do_sample": False, "temperature": 1.0}), "bc."),
        (("a", {"until": ["nothing of it"], "max_gen_toks": 20}), "bc. d\nefghijk"),
        (("x" * 40 + "a", {"max_new_tokens": 2}), "bc"),
    ]
    assert lm.generate_until(requests(*(case for case, _ in cases[1:]))) == [answer for _, answer in cases[1:]]
    with pytest.raises(GenerationError, match=r"256 new tokens.*max_seq_len=24"):
        lm.generate_until(requests(cases[0][0]))
    with pytest.raises(GenerationError, match="wants num_beams for generation"):
        lm.generate_until(requests(("a", {"num_beams": 4, "max_gen_toks": 2})))


TASK = """
task: tiny_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {output}
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
{more}
"""
MULTIPLE_CHOICE = 'doc_to_choice: "{{choices}}"\ndoc_to_target: answer\nmetric_list: [{metric: acc}]'
GENERATE = (
    'doc_to_target: "{{choices[answer]}}"\nmetric_list: [{metric: exact_match}]\n'
    'generation_kwargs: {until: ["."], max_gen_toks: 6}'
)


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
def test_tasks_of_lm_eval(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from hwpq_tvm.errors import HwpqError
    from hwpq_tvm.evaluation.tasks import run_tasks, task_table

    data = tmp_path / "data.jsonl"
    data.write_text(
        '{"question": "a", "choices": ["bc", "xy"], "answer": 0}\n'
        '{"question": "ab", "choices": ["xx", "c"], "answer": 1}\n'
        '{"question": "b", "choices": ["x", "c"], "answer": 0}\n'
    )
    for kind, output, more in (("choice", "multiple_choice", MULTIPLE_CHOICE), ("write", "generate_until", GENERATE)):
        (tmp_path / f"{kind}.yaml").write_text(TASK.format(kind=kind, data=data, output=output, more=more))
    models = {"m": tiny(*chain(ord("a"), *b"bc.", EOS))}
    tasks = ["tiny_choice", "tiny_write"]
    found = run_tasks(models, tasks, folder=tmp_path, progress=False)["m"]
    assert found["tiny_choice"]["acc,none"] == pytest.approx(2 / 3)
    assert found["tiny_write"]["exact_match,none"] == pytest.approx(2 / 3)
    assert run_tasks(models, tasks[:1], folder=tmp_path, limit=2)["m"]["tiny_choice"]["acc,none"] == 1
    assert task_table({"m": found}).row_count == 2
    with pytest.raises(HwpqError, match="absent: is no folder"):
        run_tasks(models, tasks, folder=tmp_path / "absent")
    from lm_eval import tasks as managers

    quick = partial(managers.TaskManager, include_defaults=False)  # lm-eval's own tasks are 14000 files
    monkeypatch.setattr(managers, "TaskManager", lambda include_path, **_: quick(include_path=include_path))
    with pytest.raises(HwpqError, match="lm-eval has no task tiny_other"):
        run_tasks(models, ["tiny_other"], folder=tmp_path)


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_tasks_say_what_to_install(tiny):
    from hwpq_tvm.errors import DependencyError
    from hwpq_tvm.evaluation.tasks import run_tasks

    with pytest.raises(DependencyError, match="pip install lm-eval"):
        run_tasks({"m": tiny(*random_weights(0))}, ["tiny"])
