"""The files of a tokenizer: as they are in a folder, or made from a GGUF file's metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from transformers.integrations.gguf import convert_gguf_tokenizer  # type: ignore[attr-defined]

from hwpq_tvm.errors import ImportModelError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
# What tokenizers of other kinds consist of.
_OTHER_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt")

# Kinds of byte-level tokenizers (`tokenizer.ggml.pre`) that llama.cpp lets start texts with BOS where no flag says
# otherwise (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp, `llama_vocab::impl::load`).
_STARTING_WITH_BOS = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "chameleon"),
}


def read_tokenizer_files(folder: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Read the tokenizer of a folder.

    A chat template in a file of its own is put into the configuration. Other files than `tokenizer.json`, such as a
    model of sentencepiece, are converted where transformers can.

    Returns
    -------
    `tokenizer.json` and `tokenizer_config.json` by name, empty if there is no tokenizer; and sentences for the report.

    Raises
    ------
    ImportModelError
        When `tokenizer_config.json` is damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8")) if (folder / CONFIG).is_file() else {}
    except ValueError as error:
        raise ImportModelError(f"{folder / CONFIG} is no JSON ({error}); fetch it again or remove it") from error
    if (folder / CHAT_TEMPLATE).is_file():
        config["chat_template"] = (folder / CHAT_TEMPLATE).read_text("utf-8")
    if (folder / TOKENIZER).is_file():
        return {TOKENIZER: (folder / TOKENIZER).read_bytes(), CONFIG: _json(config)}, ()
    found = [name for name in _OTHER_FILES if (folder / name).is_file()]
    if not found:
        return {}, ()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        content = tokenizer.backend_tokenizer.to_str()
    except Exception as error:
        return {}, (
            f"no tokenizer: transformers can't convert {', '.join(found)} to {TOKENIZER}"
            f" ({_first_line(error)}), so that the model takes token ids, and no text",
        )
    return {TOKENIZER: content.encode(), CONFIG: _json(config)}, (f"{TOKENIZER} was made of {', '.join(found)}",)


def gguf_tokenizer_files(architecture: str, metadata: Mapping[str, Any]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Make the tokenizer that the metadata of a GGUF file describes; returns what `read_tokenizer_files` does."""
    prefix = "tokenizer.ggml."
    found = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    if "tokens" not in found:
        return {}, ()
    renamed = {"model": "tokenizer_type", "pre": "pre_tokenizer_type", "unknown_token_id": "unk_token_id"}
    described = {renamed.get(key, key): value for key, value in found.items()}
    try:
        tokenizer, _ = convert_gguf_tokenizer(architecture, described)
    except Exception as error:
        return {}, (
            f"no tokenizer: transformers can't make one of the kind {found.get('model')!r} that the GGUF file describes"
            f" ({_first_line(error)}), so that the model takes token ids, and no text",
        )
    config: dict[str, Any] = {}
    for word in ("bos", "eos", "unknown", "padding"):
        if (index := found.get(f"{word}_token_id")) is not None and 0 <= index < len(found["tokens"]):
            config[{"unknown": "unk_token", "padding": "pad_token"}.get(word, f"{word}_token")] = found["tokens"][index]
    for word in ("add_bos_token", "add_eos_token"):
        if word in found:
            config[word] = found[word]
    # Older files have no flag: llama.cpp starts texts with BOS by the kind of tokenizer, always for sentencepiece.
    starts = found.get("model") == "llama" or (found.get("model") == "gpt2" and found.get("pre") in _STARTING_WITH_BOS)
    if config.setdefault("add_bos_token", starts) and "bos_token" in config:
        start = config["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, found["bos_token_id"])]
        )
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return {TOKENIZER: tokenizer.to_str().encode(), CONFIG: _json(config)}, ()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()
