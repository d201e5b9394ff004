import json

import pytest
from tiny_model import tokenizer_files
from tokenizers import Tokenizer, decoders, models

from hwpq_tvm.errors import GenerationError
from hwpq_tvm.runtime.tokenizer import TextStream, TextTokenizer


def tokenizer(**config):
    return TextTokenizer({**tokenizer_files(), "tokenizer_config.json": json.dumps(config).encode()})


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語 and 😀😀", " leading and trailing ", "a\n\tb", "e\u0301"]
)
def test_a_stream_gives_the_text_in_whole_characters(text):
    stream = TextStream(tokenizer())
    pieces = [stream.add(byte) for byte in text.encode()]
    pieces.append(stream.finish())
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_bytes_that_are_no_text_are_shown_as_such_and_do_not_swallow_what_follows():
    stream = TextStream(tokenizer())
    pieces = [stream.add(byte) for byte in b"a\xff\xfeb"]
    assert "".join(pieces) + stream.finish() == "a\ufffd\ufffdb"


def test_special_tokens_are_left_out():
    stream = TextStream(tokenizer())
    assert "".join(map(stream.add, [97, 257, 98])) + stream.finish() == "ab"


def test_chat_template_may_use_token_texts():
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    # As text, or as the object that older tokenizer_config.json files hold.
    found = tokenizer(chat_template=template, bos_token="<s>", eos_token={"content": "</s>"})
    assert found.encode_chat("a") == [256, 97, 257]


def test_chat_templates_have_what_transformers_gives_them():
    template = (
        "{% for message in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ message | tojson }}{% endfor %}"
        "{{ strftime_now('%%') }}"
    )
    said = [{"role": "user", "content": "<é>"}, {"role": "assistant", "content": "b"}]
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    for found in (template, named):
        assert tokenizer(chat_template=found).render_chat(said) == '{"role": "user", "content": "<é>"}%'
    assert not tokenizer(chat_template=named[:1]).has_chat_template


def test_marks_of_answers_for_training_say_nothing_and_there_are_no_tools():
    template = (
        "{% for message in messages %}{% generation %}{{ message.content }}{% set ns = 1 %}{% endgeneration %};"
        "{% endfor %}{% if tools is not none or documents is not none %}tools{% endif %}"
    )
    assert tokenizer(chat_template=template).render_chat([{"role": "assistant", "content": "a"}] * 2) == "a;a;"


def test_half_characters_are_no_text():
    with pytest.raises(GenerationError, match="not UTF-8 at character 1"):
        tokenizer().encode("a\udcff")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no tools') }}", r"chat template fails \(no tools\)"),
        ("{{ messages[0] + 1 }}", "chat template fails"),
        (None, "has no chat template"),
        ("{{ raise_exception() }}", "chat template fails"),
        ("{% if %}", "chat template fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template fails"),
    ],
)
def test_chat_templates_that_can_not_be_used(template, message):
    with pytest.raises(GenerationError, match=message):
        tokenizer(**({"chat_template": template} if template else {})).encode_chat("a")


def test_a_tokenizer_that_can_not_be_read():
    with pytest.raises(GenerationError, match=r"tokenizer.json can't be read .*token ids can still be used"):
        TextTokenizer({"tokenizer.json": b"{}"}).encode("a")


def test_the_first_piece_keeps_its_space_where_decoders_strip_the_beginning():
    vocabulary = {"▁The": 0, "▁capital": 1, "▁is": 2, "▁Paris": 3}
    sentencepiece = Tokenizer(models.WordLevel(vocabulary, unk_token="▁The"))
    sentencepiece.decoder = decoders.Metaspace()
    words = TextTokenizer({"tokenizer.json": sentencepiece.to_str().encode()})
    stream = TextStream(words, [0, 1, 2])
    assert stream.add(3) + stream.finish() == " Paris"
    assert TextStream(words).add(3) == "Paris"
