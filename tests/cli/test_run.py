import io
import json

import pytest
from tiny_model import EOS, chain

from hwpq_tvm.cli import main


@pytest.fixture
def artifact(tiny, tmp_path):
    tiny(*chain(ord(":"), *b"ok", EOS)).save(tmp_path / "m")
    return str(tmp_path / "m")


def hwpq(capsys, *arguments):
    code = main.main([*arguments])
    return code, *capsys.readouterr()


def test_interactive_answers_each_line_of_a_pipe(artifact, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n/reset\nb\n"))
    file = tmp_path / "said.json"
    code, out, err = hwpq(capsys, "run", artifact, "--interactive", "--system", "S", "--json", str(file))
    assert (code, out, err) == (0, "ok\nok\n", "[the conversation starts over]\n")
    said = ["S", "b", "ok"]
    roles = ["system", "user", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    assert json.loads(file.read_text()) == {"messages": messages, "dropped_turns": 0}


def test_quiet_leaves_the_answer_only_and_json_to_stdout_the_json_only(artifact, capsys, monkeypatch):
    code, out, err = hwpq(capsys, "run", artifact, "--prompt", ":", "--quiet")
    assert (code, out, err) == (0, "ok\n", "")
    code, out, err = hwpq(capsys, "run", artifact, "--prompt", ":", "--json", "-")
    answer = {"prompt": ":", "text": "ok", "tokens": 2, "stop_reason": "end of text"}
    assert (code, json.loads(out)) == (0, {"answers": [answer]})
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    code, out, _ = hwpq(capsys, "run", artifact, "-i", "--json", "-")
    assert json.loads(out)["messages"][-1] == {"role": "assistant", "content": "ok"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--system", "S"], "--system goes with --interactive"),
        (["--interactive", "--chat"], "--interactive always uses the chat template"),
    ],
)
def test_options_that_do_not_go_together(artifact, capsys, arguments, message):
    code, out, err = hwpq(capsys, "run", artifact, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_model_without_a_chat_template_offers_a_prompt(tiny, tmp_path, capsys):
    model = tiny(*chain(ord(":"), *b"ok", EOS))
    model.tokenizer_files = {"tokenizer.json": model.tokenizer_files["tokenizer.json"]}
    model.save(tmp_path / "m")
    code, _, err = hwpq(capsys, "run", str(tmp_path / "m"), "--interactive")
    assert code == 2
    assert "no chat template" in err
    assert "--prompt TEXT" in err


def test_a_prompt_and_a_chat_at_once_are_refused(artifact):
    with pytest.raises(SystemExit):
        main.main(["run", artifact, "--prompt", "a", "--interactive"])
