"""Lines in, answers out: typed at a terminal, or from a pipe."""

import io
from types import SimpleNamespace

import pytest
from tiny_model import EOS, chain

from hwpq_tvm import conversation
from hwpq_tvm.errors import GenerationError
from hwpq_tvm.runtime.batch_session import BatchSession

OPTIONS = {"max_new_tokens": 5, "temperature": 0.0, "top_p": 1.0, "seed": None}


@pytest.fixture
def talk(tiny, monkeypatch):
    """Function: lines (an exception is raised in its turn) -> chat, what was written, and notes."""

    def converse(lines, *, typed=False, weights=None, **options):
        chat = tiny(*(weights or chain(ord(":"), *b"ok", EOS))).chat()
        written, notes = [], []
        if typed:
            script = iter(lines)
            monkeypatch.setattr(conversation.sys, "stdin", SimpleNamespace(isatty=lambda: True))
            monkeypatch.setattr(conversation.sys, "stdout", SimpleNamespace(isatty=lambda: True))

            def ask(_):
                line = next(script, EOFError())
                if isinstance(line, BaseException):
                    raise line
                return line

            monkeypatch.setattr("builtins.input", ask)
        else:
            monkeypatch.setattr(conversation.sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        conversation.converse(chat, write=written.append, note=notes.append, **{**OPTIONS, **options})
        return chat, "".join(written), notes

    return converse


def test_every_line_of_a_pipe_is_answered(talk):
    chat, written, notes = talk(["a", "", "  "])
    assert (written, notes) == ("ok\n", [])
    assert [message["content"] for message in chat.messages] == ["a", "ok"]


def test_reset_and_exit(talk):
    chat, written, notes = talk(["a", "/reset", "b", "/exit", "c"])
    assert written == "ok\nok\n"
    assert notes == ["[the conversation starts over]"]
    assert [message["content"] for message in chat.messages] == ["b", "ok"]


def test_notes_say_what_was_cut_and_what_was_forgotten(talk):
    _, written, notes = talk(["a", "b"], max_new_tokens=1)
    assert written == "o\no\n"
    # [user]a[assistant]o[user]b: are 27 of 24 tokens.
    assert notes == [
        "[1 tokens, stopped at: max_new_tokens]",
        "[max_seq_len is reached: turns forgotten: 1, the oldest]",
        "[1 tokens, stopped at: max_new_tokens]",
    ]


def test_each_message_has_a_seed_of_its_own(talk, monkeypatch):
    seeds = []
    send = conversation.Chat.send
    monkeypatch.setattr(conversation.Chat, "send", lambda chat, *given: seeds.append(given[-1]) or send(chat, *given))
    talk(["a", "b"], seed=0)
    talk(["a"])
    assert seeds == [0, 1, None]


def test_at_a_terminal_ctrl_c_ends_the_answer_and_not_the_program(talk, monkeypatch):
    decode = BatchSession.decode
    steps = iter([None, KeyboardInterrupt(), None, None])

    def interrupted(session, tokens):
        if (error := next(steps)) is not None:
            raise error
        return decode(session, tokens)

    monkeypatch.setattr(BatchSession, "decode", interrupted)
    chat, written, notes = talk(["a", KeyboardInterrupt(), "/reset", "b"], typed=True)
    assert written == "ok\nok\n"
    assert notes == [
        conversation.COMMANDS,
        "[2 tokens, stopped at: Ctrl-C]",
        f"\n{conversation.COMMANDS}",
        "[the conversation starts over]",
        "",
    ]
    assert chat.messages[-1]["content"] == "ok"


def test_a_pipe_that_is_no_utf8_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(conversation.sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xe9\n"), encoding="utf-8"))
    written = []
    with pytest.raises(GenerationError, match="not UTF-8"):
        chat = tiny(*chain(ord(":"), *b"ok", EOS)).chat()
        conversation.converse(chat, write=written.append, note=written.append, **OPTIONS)
    assert "".join(written) == "ok\n"


def test_a_message_that_can_not_be_answered_ends_a_pipe_only(talk, capsys):
    with pytest.raises(GenerationError, match="the prompt has 47 tokens"):
        talk(["x" * 40, "a"])
    _, written, notes = talk(["x" * 40, "a"], typed=True)
    assert written == "ok\n"
    assert notes == [conversation.COMMANDS, ""]
    assert capsys.readouterr().err.startswith("error: the prompt has 47 tokens")


def test_ctrl_c_ends_a_pipe(talk, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(BatchSession, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk(["a"])
