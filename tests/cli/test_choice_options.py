"""Options of `--preset auto`: what they hand on, and what they refuse before any work."""

import argparse
from pathlib import Path

import pytest

import hwpq_tvm
from hwpq_tvm.cli import main
from hwpq_tvm.cli.choice_options import choice_arguments


def arguments(*words):
    options = main.parser().parse_args(["build", "MODEL", "--out", "DIR", *words])
    return choice_arguments(options)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max-perplexity-increase", "5%"], {"max_perplexity_increase": 0.05}),
        (["--max-perplexity-increase", "0.05"], {"max_perplexity_increase": 0.05}),
        (["--max-perplexity-increase", "150%"], {"max_perplexity_increase": 1.5}),
        (["--target-size", "90"], {"target_size": 90e6}),
        (["--target-speed", "180.5", "--evaluation", "t.txt"], {"target_speed": 180.5, "evaluation": Path("t.txt")}),
    ],
)
def test_a_budget_is_handed_on(words, expected):
    assert arguments("--preset", "auto", *words) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "auto"], "--preset auto needs one of --max-perplexity-increase, --target-size, --target-speed"),
        (["--preset", "auto", "--target-size", "9", "--target-speed", "9"], "found --target-size, --target-speed"),
        (["--preset", "auto", "--max-perplexity-increase", "5"], "expected a share such as 5% or 0.05"),
        (["--preset", "auto", "--max-perplexity-increase", "little"], "little: expected a share"),
        (["--preset", "auto", "--target-size", "9", "--dry-run"], "--preset auto excludes --dry-run"),
        (["--preset", "auto", "--target-size", "9", "--dtype", "int8"], "--config and --preset exclude --dtype"),
        (["--target-size", "9"], "--target-size: only with --preset auto"),
        (["--preset", "small", "--evaluation", "t.txt"], "--evaluation: only with --preset auto"),
    ],
)
def test_what_does_not_go_together_is_refused(words, message, capsys, tmp_path):
    assert main.main(["build", "MODEL", "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err


def test_tuning_knows_no_choice():
    with pytest.raises(SystemExit):
        main.parser().parse_args(["tune", "MODEL", "--work-dir", "DIR", "--preset", "auto"])


def test_build_saves_what_was_chosen_and_shows_it(monkeypatch, capsys, tmp_path, tiny_artifact):
    model = hwpq_tvm.load(tiny_artifact)
    place = {
        "name": "the choice",
        "perplexity": 12.0,
        "perplexity_source": "measured",
        "decode_tokens_per_second": 99.5,
        "speed_source": "measured",
        "weight_bytes": 5_000_000,
        "layers": {"dense int4": 3},
    }
    choice = {"float_perplexity": 10.0, "checked": [place], "rivals": [], "frontier": [], "verdict": ["well chosen"]}
    asked = {}

    def choose_config(source, target, **options):
        asked.update(options, source=source, target=target)
        model.report = {**model.report, "choice": choice}
        return argparse.Namespace(model=model)

    monkeypatch.setattr(hwpq_tvm, "choose_config", choose_config, raising=False)
    words = ["--preset", "auto", "--target-size", "5", "--kv-cache", "int8", "--quiet"]
    assert main.main(["build", "MODEL", "--out", str(tmp_path / "out"), *words]) == 0
    out = capsys.readouterr().out
    assert "1.200" in out
    assert "99.5" in out
    assert "well chosen" in out
    assert hwpq_tvm.load(tmp_path / "out").report["choice"] == choice
    assert (asked["source"], asked["target"], asked["target_size"]) == ("MODEL", "cpu", 5e6)
    assert asked["config"].kv_cache_dtype == "int8"
    assert asked["config"].group_policy == "pad"
    assert asked["progress"] is False
