import io
import json
from types import SimpleNamespace

import pytest
from tiny_model import random_weights

from hwpq_tvm.cli import main
from hwpq_tvm.evaluate import evaluation_text, perplexity
from hwpq_tvm.evaluation import original
from hwpq_tvm.evaluation import tasks as lm_eval_tasks

TEXT = "Some text that is read in windows of ten bytes."


@pytest.fixture
def models(tiny, tmp_path):
    """Two artefacts by name, and a text."""
    made = {name: tiny(*random_weights(seed)) for name, seed in (("one", 0), ("two", 1))}
    for name, model in made.items():
        model.save(tmp_path / name)
    (tmp_path / "t.txt").write_text(TEXT)
    return SimpleNamespace(
        one=str(tmp_path / "one"), two=str(tmp_path / "two"), text=str(tmp_path / "t.txt"), **{"made": made}
    )


def hwpq(capsys, *arguments):
    code = main.main(["eval", *arguments])
    return code, *capsys.readouterr()


def test_several_models_are_shown_side_by_side(models, capsys, tmp_path):
    options = ["--text", models.text, "--window-length", "10", "--json", str(tmp_path / "r.json")]
    code, out, err = hwpq(capsys, models.one, models.two, models.one, *options)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "r.json").read_text())["models"]
    assert list(found) == [models.one, models.two, f"{models.one} (2)"]
    for name, each in found.items():
        model = models.made["two" if name == models.two else "one"]
        assert each["perplexity"] == perplexity(model, TEXT, window_length=10).perplexity
        assert f"{each['perplexity']:.4f}" in out
        assert set(each) == {"perplexity", "tokens", "windows", "window_length", "bits_per_byte"}
    assert out.endswith("42 tokens, 5 windows of at most 10\n")


def test_against_the_original(models, capsys):
    options = ["--text", models.text, "--window-length", "10", "--windows", "3", "--stride", "5", "--json", "-"]
    code, out, _ = hwpq(capsys, models.one, "--against", models.two, *options)
    assert code == 0
    found = json.loads(out)["models"]
    assert list(found) == [models.one, "original"]
    assert found["original"]["tokens"] == found[models.one]["tokens"] == 19
    assert found[models.one]["stride"] == 5
    assert 0 <= found[models.one]["greedy_agreement"] < 1
    assert list(found[models.one]["kl_divergence"]) == ["mean", "median", "percentile_99", "maximum"]
    out = hwpq(capsys, models.one, "--against", models.one, *options[:-2])[1]
    row = next(line for line in out.splitlines() if line.startswith(models.one))
    assert row.split()[-6:] == ["1.0000", "100.00%", "0.0000", "0.0000", "0.0000", "0.0000"]
    assert "19 tokens, 3 windows of at most 10, one every 5 tokens" in out


def test_text_from_stdin_and_the_text_that_ships(models, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    options = ["--window-length", "10", "--windows", "2", "--json", "-"]
    out = hwpq(capsys, models.one, "--text", "-", *options)[1]
    model = models.made["one"]
    assert json.loads(out) == perplexity(model, TEXT, window_length=10, windows=2).to_json()
    _, out, err = hwpq(capsys, models.one, "--windows", "2", "--json", "-")
    assert json.loads(out)["window_length"] == 24  # the model takes no more
    _, out, err = hwpq(capsys, models.one, *options)
    assert json.loads(out) == perplexity(model, evaluation_text(), window_length=10, windows=2).to_json()
    assert "text: the one that ships with hwpq_tvm" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    code, _, err = hwpq(capsys, models.one, "--text", "-")
    assert code == 2
    assert "stdin is not UTF-8 text" in err


def test_a_perplexity_above_the_limit_is_exit_code_3(models, capsys):
    options = ["--text", models.text, "--window-length", "10", "--quiet"]
    value = perplexity(models.made["one"], TEXT, window_length=10).perplexity
    code, out, _ = hwpq(capsys, models.one, *options, "--max-perplexity", str(value + 1))
    assert code == 0
    assert out.startswith(f"perplexity {value:.4f}")
    assert hwpq(capsys, models.one, *options, "--max-perplexity", str(value - 1))[0] == 3


def test_tasks_go_to_lm_eval(models, capsys, monkeypatch, tmp_path):
    asked = []

    def run_tasks(loaded, tasks, **options):
        asked.append((list(loaded), tasks, options))
        return {name: {"easy": {"sample_len": 2, "acc,none": 0.5, "acc_stderr,none": 0.25}} for name in loaded}

    monkeypatch.setattr(lm_eval_tasks, "run_tasks", run_tasks)
    options = ["--tasks", "easy,hard", "--limit", "2", "--tasks-folder", "F", "--json", str(tmp_path / "r.json")]
    code, out, _ = hwpq(capsys, models.one, models.two, *options)
    assert code == 0
    ((name_list, tasks, given),) = asked
    assert (name_list, tasks) == ([models.one, models.two], ["easy", "hard"])
    assert (given["limit"], str(given["folder"]), given["progress"]) == (2, "F", True)
    assert out.splitlines()[-1].split() == ["easy", "acc", *["0.5000", "±", "0.2500"] * 2]
    assert json.loads((tmp_path / "r.json").read_text())["models"][models.two]["tasks"]["easy"]["acc,none"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window-length", "25"], "window_length=25: expected 2 to 24"),
        (["--window-length", "1"], "window_length=1: expected 2 to 24"),
        (["--stride", "30"], "stride=30: expected 1 to 24"),
        (["--windows", "0"], "windows=0"),
        (["--windows", "9"], "the text has 47 tokens, at least 216 are needed"),
    ],
)
def test_mistakes_are_told_before_the_original_is_made(models, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(original, "load_original", lambda *_, **__: pytest.fail("made"))
    options = ["--text", models.text, "--against", models.two, "--json", "-"]
    code, out, err = hwpq(capsys, models.one, *options, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_model_that_is_named_as_the_original(models, capsys, monkeypatch, tmp_path):
    models.made["one"].save(tmp_path / "original")
    monkeypatch.chdir(tmp_path)
    code, _, err = hwpq(capsys, "original", "--text", models.text, "--against", "absent")
    assert code == 2
    assert "name it otherwise, or by its whole path" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "easy", "--text", "t", "--stride", "2"], "--text, --stride: not with --tasks"),
        (["--limit", "2"], "--limit: not without --tasks"),
        (["--stride", "600"], "stride=600"),
        (["--window-length", "25"], "window_length=25: expected 2 to 24"),
        (["--window-length", "10", "--against", "absent"], "absent"),
        (["--tasks", "", "--text", "t"], "--text: not with --tasks"),
    ],
)
def test_mistakes(models, capsys, arguments, message):
    if "--stride" in arguments and "--tasks" not in arguments:
        arguments = [*arguments, "--window-length", "10"]
    code, out, err = hwpq(capsys, models.one, *arguments)
    assert (code, out) == (2, "")
    assert message in err
