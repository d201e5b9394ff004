"""Text to ids and back: the tokenizer of the source model, and pieces of text from a stream of ids."""

import importlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import DependencyError, GenerationError

# Ids of the prompt that the first piece of text is decoded with.
_PROMPT_CONTEXT = 8

# What a byte-level tokenizer decodes an unfinished UTF-8 sequence to.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextTokenizer:
    """The tokenizer of a model.

    Parameters
    ----------
    files
        Tokenizer files by name; `tokenizer.json` is needed for text, `tokenizer_config.json` for chat.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    @cached_property
    def _tokenizer(self) -> Any:
        if "tokenizer.json" not in self._files:
            raise GenerationError("the model has no tokenizer (tokenizer.json), so text can't be used; token ids can.")
        try:
            tokenizers = importlib.import_module("tokenizers")
        except ImportError as error:
            raise DependencyError("package tokenizers is not installed. Run: pip install tokenizers") from error
        try:
            return tokenizers.Tokenizer.from_str(self._files["tokenizer.json"].decode())
        except Exception as error:  # tokenizers raises plain Exception
            raise GenerationError(f"tokenizer.json can't be read ({error}); token ids can still be used.") from error

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return json.loads(self._files.get("tokenizer_config.json", b"{}"))

    @property
    def chat_template(self) -> str | None:
        """How the model wants a conversation to be written, as a Jinja template; None where it does not say."""
        template = self._config.get("chat_template")
        if isinstance(template, list):  # older files have several by name
            template = next((each["template"] for each in template if each.get("name") == "default"), None)
        return template if isinstance(template, str) else None

    @property
    def has_chat_template(self) -> bool:
        """Whether the model says how a conversation is written."""
        return self.chat_template is not None

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Ids of `text`, with the special tokens (such as a beginning-of-text mark) that the tokenizer adds.

        Raises
        ------
        GenerationError
            When the model has no tokenizer, or the text has half characters, as Python reads bytes that are no UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise GenerationError(f"the text is not UTF-8 at character {error.start}. Convert it.") from error
        return self._tokenizer.encode(text, add_special_tokens=special_tokens).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode_chat(self, messages: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation that the model is to go on with.

        Parameters
        ----------
        messages
            What was said so far: `{"role": "system", "user" or "assistant", "content": text}` each; a text is what the
            user said in a conversation that begins with it.

        Raises
        ------
        GenerationError
            When the model has no chat template, or it can't be rendered.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.encode(self.render_chat(messages), special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Text of a conversation, as `encode_chat`; its end opens an answer where `add_generation_prompt` is set."""
        if self.chat_template is None:
            raise GenerationError("the model has no chat template; use the plain prompt instead.")
        try:
            sandbox = importlib.import_module("jinja2.sandbox")
            jinja2 = importlib.import_module("jinja2")
        except ImportError as error:
            raise DependencyError("chat templates need the package jinja2. Run: pip install jinja2") from error

        def refuse(reason: str) -> None:
            raise jinja2.exceptions.TemplateError(reason)

        # The template comes with the model, so it may not touch anything: as transformers renders it.
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_block()]
        )
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        tokens = {name: _token_text(value) for name, value in self._config.items() if name.endswith("_token")}
        try:
            return environment.from_string(self.chat_template).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **tokens
            )
        except Exception as error:  # a template is a program, which may fail in any way
            raise GenerationError(
                f"the model's chat template fails ({error}); use the plain prompt instead."
            ) from error


def _generation_block() -> Any:
    """What lets Jinja take `{% generation %}`, by which some templates mark answers for training: it says nothing."""

    def parse(_: Any, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    base = importlib.import_module("jinja2.ext").Extension
    return type("GenerationBlock", (base,), {"tags": {"generation"}, "parse": parse})


def _token_text(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


class TextStream:
    """Turns a stream of ids into pieces of text; characters whose bytes are not all there yet are held back.

    A token's text depends on the tokens before it (a leading space, the bytes of one character spread over several
    tokens), so a piece is the difference between two decodings that start at the same, recent token.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int] | np.ndarray = ()) -> None:
        self._tokenizer = tokenizer
        # Ids of the last piece, then those since. The end of the prompt is the first "last piece": decoders of
        # sentencepiece tokenizers drop a space at the beginning of what they decode, which here is no beginning.
        self._ids = [int(token) for token in prompt[-_PROMPT_CONTEXT:]]
        self._context = len(self._ids)  # how many of them belong to the last piece
        self._shown = tokenizer.decode(self._ids) if self._ids else ""  # their text

    def add(self, token: int) -> str:
        """Piece of text that became certain with `token`; may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._shown):
            return ""
        piece = text[len(self._shown) :]
        self._ids = self._ids[self._context :]
        self._context = len(self._ids)
        self._shown = self._tokenizer.decode(self._ids)
        return piece

    def finish(self) -> str:
        """What was held back, unfinished characters as replacement characters."""
        return self._tokenizer.decode(self._ids)[len(self._shown) :]
