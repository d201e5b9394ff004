import argparse
import inspect
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import EOS, Reference, chain, random_weights, report

from hwpq_tvm.cli import common, main, run
from hwpq_tvm.cli import inspect as inspect_verb
from hwpq_tvm.cli.config_options import config_of
from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import ConfigError


def error_line(capsys, *arguments, code):
    assert main.main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    (line,) = err.splitlines()
    return line


def output(capsys, *arguments):
    assert main.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr()


def test_run_streams_text_and_says_why_it_ended(capsys, tiny, tmp_path):
    tiny(*chain(ord("a"), *"b😀c".encode(), EOS)).save(tmp_path / "m")
    out, err = output(capsys, "run", tmp_path / "m", "--prompt", "a")
    assert out == "b😀c\n"
    assert err == "[6 tokens, stopped at: end of text]\n"
    out, err = output(capsys, "run", tmp_path / "m", "--prompt", "a", "--max-new-tokens", "1", "--threads", "1")
    assert (out, err) == ("b\n", "[1 tokens, stopped at: max_new_tokens]\n")


def test_run_continues_several_prompts_at_once(capsys, tiny_batch, tmp_path):
    tiny_batch(*chain(ord("a"), *"b😀c".encode(), EOS)).save(tmp_path / "m")
    prompts = ["--prompt", "xa", "--prompt", "b", "--prompt", "c"]
    out, err = output(capsys, "run", tmp_path / "m", *prompts, "--max-new-tokens", "5")
    assert out == "[1]\nb😀\n[2]\n😀c\n[3]\n\n"
    assert err.splitlines() == [
        "[prompt 1: 5 tokens, stopped at: max_new_tokens]",
        "[prompt 2: 5 tokens, stopped at: max_new_tokens]",
        "[prompt 3: 0 tokens, stopped at: end of text]",
    ]
    line = error_line(capsys, "run", tmp_path / "m", *prompts, "--prompt", "d", code=2)
    assert line.startswith("hwpq: error: found 4 prompts: the model was compiled for max_batch=3.")
    assert "prompts[1]: the prompt is empty" in error_line(
        capsys, "run", tmp_path / "m", "--prompt", "a", "--prompt", "", code=2
    )


def test_run_passes_the_sampling_options_on(capsys, tiny_artifact):
    arguments = ["run", tiny_artifact, "--prompt", "a", "--temperature", "2", "--max-new-tokens", "9"]
    assert output(capsys, *arguments, "--seed", "1").out == output(capsys, *arguments, "--seed", "1").out
    assert output(capsys, *arguments, "--seed", "1").out != output(capsys, *arguments, "--seed", "2").out
    nearly_greedy = output(capsys, *arguments, "--seed", "1", "--top-p", "1e-9").out
    expected = bytes(token for token in Reference(*random_weights(0)).greedy([97], 9) if token < 256)
    assert nearly_greedy == expected.decode(errors="replace") + "\n"


def test_eval_writes_the_json_of_the_design(capsys, tiny_artifact, tmp_path):
    (tmp_path / "t.txt").write_text("Some text, read in windows of ten bytes.")
    options = ["--text", tmp_path / "t.txt", "--window-length", "10", "--windows", "2", "--json", tmp_path / "r.json"]
    out = output(capsys, "eval", tiny_artifact, *options).out
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result) == {"perplexity", "tokens", "windows", "window_length"}
    assert (result["tokens"], result["windows"], result["window_length"]) == (18, 2, 10)
    assert out == f"perplexity {result['perplexity']:.4f} (18 tokens, 2 windows of at most 10)\n"


def test_inspect_shows_every_layer_and_its_reason(capsys, tiny_artifact, tmp_path):
    out = output(capsys, "inspect", tiny_artifact, "--json", tmp_path / "r.json").out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("model.")}
    assert "2:4 int8" in rows["model.up_proj"]
    assert "0.2100" in rows["model.up_proj"]
    assert "avx2.sparse24_int8.gemm (default), avx2.sparse24_int8.gemv (default)" in rows["model.up_proj"]
    assert "ignored by '.*[od]dd_proj'" in rows["model.odd_proj"]
    assert "warning: pruned by magnitude" in out
    assert "5.50 bits per weight" in out
    value = json.loads((tmp_path / "r.json").read_text())
    keys = {"name", "shape", "scheme", "kernel", "schedule", "bits_per_weight", "relative_error", "skipped"}
    assert keys <= set(value["layers"][0])
    assert value["target"] == {"kind": "llvm", "num-cores": 2}
    assert value["config"] == HWPQConfig().to_json()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{absent}", "--prompt", "a"], "no such folder. Name one that `hwpq build --out`"),
        (["run", "{artifact}", "--prompt", ""], "hwpq: error: the prompt is empty"),
        (["run", "{artifact}", "--prompt", "a", "--threads", "0"], "threads=0: expected at least 1"),
        (["eval", "{artifact}", "--text", "{absent}"], "can't be read (No such file or directory). Name a text file."),
        (["eval", "{artifact}", "--text", "{binary}"], "is not UTF-8 text"),
        (["bench", "{artifact}", "--repeat", "0"], "repeat=0"),
        (["bench", "{artifact}"], "prompt_length=256 does not fit max_seq_len=24"),
        (["bench", "{artifact}", "{absent}"], "no such folder"),
        (["inspect", "{artifact}", "--json", "{absent}/x.json"], "x.json: can't be written"),
        (["build", "model"], "--out is missing"),
        (["build", "model", "--out", "{binary}"], "binary: is not a folder"),
        (["build", "model", "--config", "{absent}"], "can't be read"),
        (["build", "model", "--config", "{binary}", "--dtype", "int8"], "--config and --preset exclude --dtype"),
        (["build", "model", "--preset", "fast", "--group-size", "64"], "--config and --preset exclude --group-size"),
        (["build", "model", "--sparsity", "2:4", "--dtype", "float32"], "float32 leaves weights as they are"),
        (["build", "model", "--sparsity", "half"], '--sparsity half: expected "2:4"'),
        (["build", "model", "--sparsity", "1.5"], "sparsity=1.5: expected a share between 0 and 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tiny_artifact, tmp_path, arguments, message):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    names = {"absent": tmp_path / "absent", "artifact": tiny_artifact, "binary": tmp_path / "binary"}
    if "inspect" in arguments:
        assert main.main([argument.format(**names) for argument in arguments]) == 2
        assert message in capsys.readouterr().err
    else:
        assert message in error_line(capsys, *(argument.format(**names) for argument in arguments), code=2)


def test_unknown_options_are_exit_code_2(capsys):
    # Options are not abbreviated: what --dry meant would change with the next option.
    for arguments in (
        ["frobnicate"],
        ["run"],
        ["build", "m", "--dtype", "int3"],
        ["build", "m", "--dry"],
        ["run", "-qv"],
    ):
        with pytest.raises(SystemExit) as error:
            main.main(arguments)
        assert error.value.code == 2
        assert "usage: hwpq" in capsys.readouterr().err


def test_hwpq_alone_shows_help(capsys):
    alone = output(capsys)
    assert alone.err == ""
    for words in ("verbs:", "exit codes:", "NO_COLOR", "hwpq doctor"):
        assert words in alone.out
    with pytest.raises(SystemExit) as error:
        main.main(["--help"])
    assert error.value.code == 0
    assert capsys.readouterr() == alone


@pytest.mark.parametrize("verb", [module.__name__.rsplit(".", 1)[1] for module in main.VERBS])
def test_help_ends_in_examples_that_are_right(capsys, verb):
    with pytest.raises(SystemExit) as error:
        main.main([verb, "--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for option in ("--quiet", "--verbose", "--traceback"):
        assert option in text
    assert ("--json FILE" in text) is (verb != "completion")
    examples = [line.strip() for line in text.split("examples:\n")[1].splitlines()]
    assert examples
    for example in examples:
        command = re.search(r"(?:^|\| )hwpq ([^>|]*)", example)
        options = main.parser().parse_args(shlex.split(command[1], comments=True))
        assert options.verb == verb


def test_json_alone_on_stdout(capsys, tiny_artifact, tmp_path):
    (tmp_path / "t.txt").write_text("Some text, read in windows of ten bytes.")
    for arguments in (
        ["eval", tiny_artifact, "--text", tmp_path / "t.txt", "--window-length", "10"],
        ["inspect", tiny_artifact],
        ["run", tiny_artifact, "--prompt", "a", "--max-new-tokens", "3"],
        ["bench", tiny_artifact, "--prompt-length", "3", "--new-tokens", "2", "--repeat", "1", "--no-bandwidth"],
    ):
        found = output(capsys, *arguments, "--json", "-", "--quiet")
        assert json.loads(found.out)
        assert found.err == ""


def test_messages_are_as_many_as_asked_for(capsys, monkeypatch, tiny_artifact):
    def logs(options):
        logger = logging.getLogger("hwpq_tvm.some.module")
        for level in (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
            logger.log(level, "%s", logging.getLevelName(level))

    monkeypatch.setattr(inspect_verb, "inspect", logs)
    shown = {"--quiet": ["ERROR"], "--verbose": ["ERROR", "WARNING", "INFO"], "--traceback": ["ERROR", "WARNING"]}
    for option, levels in shown.items():
        lines = output(capsys, "inspect", tiny_artifact, option).err.splitlines()
        if option == "--verbose":
            assert re.fullmatch(r"hwpq: inspect took \d+\.\d s, and \d+ MB of memory at most", lines.pop())
        assert lines == [f"hwpq: {level}" for level in levels]


def test_verbose_tells_the_phases_of_a_build(caplog):
    from hwpq_tvm.compiler import _Clock

    clock = _Clock()
    with caplog.at_level(logging.INFO, "hwpq_tvm"), clock("plan"):
        pass
    assert re.fullmatch(r"plan: \d+\.\d s", caplog.messages[-1])


def test_the_answer_no_is_exit_code_3(monkeypatch, tiny_artifact):
    monkeypatch.setattr(inspect_verb, "inspect", lambda options: common.ANSWER_IS_NO)
    assert main.main(["inspect", str(tiny_artifact)]) == 3


def test_colours_obey_no_color(monkeypatch, capsys):
    options = argparse.Namespace(quiet=False, json=None)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    shown = []
    for variables in ({}, {"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        common.output_console(options).print("[red]no[/red]")
        shown.append(capsys.readouterr().out)
    assert shown == ["no\n", "\x1b[31mno\x1b[0m\n", "no\n"]


def test_our_own_errors_are_exit_code_1_and_show_their_origin_on_request(capsys, monkeypatch, tiny_artifact):
    def fails(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(run, "load_model", fails)
    line = error_line(capsys, "run", tiny_artifact, "--prompt", "a", code=1)
    assert line == (
        "hwpq: internal error: ZeroDivisionError: division by zero Run again with --traceback, and report it."
    )
    assert main.main(["run", str(tiny_artifact), "--prompt", "a", "--traceback"]) == 1
    err = capsys.readouterr().err
    assert "in fails" in err
    assert err.endswith("hwpq: internal error: ZeroDivisionError: division by zero\n")


def test_interruption_is_exit_code_130(capsys, monkeypatch, tiny_artifact):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_model", interrupted)
    assert error_line(capsys, "run", tiny_artifact, "--prompt", "a", code=130) == "hwpq: interrupted"


def options_of(*arguments):
    return main.parser().parse_args(["build", "model", *map(str, arguments)])


def test_build_options_become_a_configuration(tmp_path):
    assert config_of(options_of()) == HWPQConfig()
    assert config_of(options_of("--sparsity", "none")) == HWPQConfig(default=LayerScheme(sparsity=None))
    assert config_of(options_of("--sparsity", "auto")) == HWPQConfig(default=LayerScheme(sparsity="auto"))
    assert config_of(options_of("--metric", "magnitude")) == HWPQConfig(default=LayerScheme(metric="magnitude"))
    dense = LayerScheme(sparsity=None, dtype="float32")
    assert config_of(options_of("--dtype", "float32")) == HWPQConfig(default=dense, lm_head=dense)
    int4 = config_of(options_of("--sparsity", "0.5", "--dtype", "int4", "--group-size", "32", "--reconstruct", "cg"))
    assert int4 == HWPQConfig(default=LayerScheme(0.5, "int4", group_size=32, reconstruct="cg"))
    general = ["--group-policy", "pad", "--kv-cache", "int8", "--activations", "float", "--sequential"]
    assert config_of(options_of("--preset", "small", *general)) == replace(
        HWPQConfig.preset("small"), kv_cache_dtype="int8", activations="float", sequential=True
    )
    config = HWPQConfig(ignore=(r".*\.o_proj",))
    (tmp_path / "c.json").write_text(json.dumps(config.to_json()))
    assert config_of(options_of("--config", tmp_path / "c.json")) == config
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError):
        config_of(options_of("--config", tmp_path / "c.json"))


def test_build_calls_the_compiler_once_and_saves(capsys, compiler_stub, tiny, tmp_path):
    calls = []

    def build(*arguments, **options):
        calls.append((arguments, options))
        return tiny(*random_weights(0))

    compiler_stub.build = build
    arguments = ["--out", tmp_path / "m", "--calibration", "none", "--max-seq-len", "64", "--threads", "1"]
    arguments += ["--tuning-logs", tmp_path / "tuned", "--max-batch", "4"]
    out = output(capsys, "build", "model", "--target", "cpu:x86-64-v3", *arguments).out
    expected = {
        "config": HWPQConfig(),
        "calibration": None,
        "max_batch": 4,
        "max_seq_len": 64,
        "threads": 1,
        "tuning_logs": tmp_path / "tuned",
        "work_dir": tmp_path / ".m.work",
        "resume": False,
        "memory_budget": None,
        "debug_dump": None,
        "progress": True,
    }
    assert calls == [(("model", "cpu:x86-64-v3"), expected)]
    assert f"written: {tmp_path / 'm'}" in out
    assert output(capsys, "run", tmp_path / "m", "--prompt", "a", "--max-new-tokens", "2").out


def test_a_build_that_was_stopped_leaves_its_layers_beside_the_artefact(capsys, compiler_stub, tiny, tmp_path):
    layers, seen = tmp_path / ".m.work" / "layers", []

    def build(*_, work_dir, resume, **__):
        seen.append((resume, layers.exists()))
        layers.mkdir(parents=True, exist_ok=True)
        if len(seen) < 2:
            raise KeyboardInterrupt
        return tiny(*random_weights(0))

    compiler_stub.build = build
    arguments = ["build", "model", "--out", tmp_path / "m"]
    error_line(capsys, *arguments, code=130)
    assert layers.exists()
    assert not (tmp_path / "m").exists()
    output(capsys, *arguments, "--resume")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    layers.mkdir(parents=True)
    output(capsys, *arguments)  # what is there is not taken up unasked
    assert seen == [(False, False), (True, True), (False, False)]


def test_calibration_options_say_how_much(compiler_stub, capsys, tmp_path):
    seen = []
    compiler_stub.plan = lambda *_, **options: seen.append(options["calibration"]) or report()
    for arguments in ([], ["--calibration", "a.txt"], ["--calibration", "a.txt", "--calibration-samples", "3"]):
        output(capsys, "build", "model", "--dry-run", *arguments)
    assert seen[:2] == ["default", Path("a.txt")]
    assert (seen[2].source, seen[2].samples, seen[2].length) == (Path("a.txt"), 3, 512)


def test_dry_run_prints_the_plan_and_writes_nothing(capsys, compiler_stub, tmp_path):
    calls = []

    def plan(*arguments, **options):
        calls.append((arguments, options))
        return report()

    compiler_stub.plan = plan
    out = output(capsys, "build", "model", "--dry-run", "--out", tmp_path / "m").out
    assert "model.up_proj" in out
    assert not (tmp_path / "m").exists()
    expected = {
        "config": HWPQConfig(),
        "calibration": "default",
        "max_batch": 1,
        "max_seq_len": 2048,
        "threads": None,
        "tuning_logs": None,
    }
    assert calls == [(("model", "cpu"), expected)]


def test_the_compiler_takes_what_it_is_given():
    from hwpq_tvm import compiler

    shared = {"config": HWPQConfig(), "calibration": None, "max_batch": 2, "max_seq_len": 64, "threads": 1}
    shared["tuning_logs"] = "t"
    inspect.signature(compiler.plan).bind("model", "cpu", **shared)
    inspect.signature(compiler.build).bind(
        "model", "cpu", **shared, resume=True, work_dir="w", memory_budget=1, debug_dump=None, progress=False
    )


def test_help_is_quick():
    script = (
        "import sys; from hwpq_tvm.cli.main import main; main([]); "
        "sys.exit(bool({'torch', 'tvm', 'numpy', 'rich', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_the_program_starts_without_tvm_or_torch(tiny_artifact):
    script = (
        "import sys; from hwpq_tvm.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'tvm', 'transformers'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    arguments = ["run", tiny_artifact, "--prompt", "a", "--max-new-tokens", "3"]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout


def test_a_reader_that_leaves_is_no_error(tiny_artifact):
    command = [sys.executable, "-P", "-m", "hwpq_tvm.cli.main", "inspect", tiny_artifact]
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert result.returncode == 1
    assert result.stderr == b""


def test_json_and_text_files(tmp_path):
    common.write_json(tmp_path / "x.json", {"a": "é"})
    assert json.loads(common.read_text(tmp_path / "x.json")) == {"a": "é"}
    assert Path(tmp_path / "x.json").read_text().endswith("\n")
    common.write_json(None, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json"]
