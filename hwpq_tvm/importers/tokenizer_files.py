"""The files of a tokenizer: as they are in a folder, or made from a GGUF file's metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers.integrations.gguf import convert_gguf_tokenizer  # type: ignore[attr-defined]

from hwpq_tvm.errors import ImportModelError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Read `tokenizer.json` and `tokenizer_config.json` of a folder.

    A chat template in a file of its own is put into the configuration. Without `tokenizer.json` the result is empty.
    """
    if not (folder / TOKENIZER).is_file():
        return {}
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8")) if (folder / CONFIG).is_file() else {}
    except ValueError as error:
        raise ImportModelError(f"{folder / CONFIG} is no JSON ({error}); fetch it again or remove it") from error
    if (folder / CHAT_TEMPLATE).is_file():
        config["chat_template"] = (folder / CHAT_TEMPLATE).read_text("utf-8")
    return {TOKENIZER: (folder / TOKENIZER).read_bytes(), CONFIG: _json(config)}


def gguf_tokenizer_files(architecture: str, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Make the tokenizer that the metadata of a GGUF file describes; empty if it describes none."""
    prefix = "tokenizer.ggml."
    found = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    if "tokens" not in found:
        return {}
    renamed = {"model": "tokenizer_type", "pre": "pre_tokenizer_type", "unknown_token_id": "unk_token_id"}
    described = {renamed.get(key, key): value for key, value in found.items()}
    try:
        tokenizer, _ = convert_gguf_tokenizer(architecture, described)
    except Exception as error:
        raise ImportModelError(
            f"transformers can't make a tokenizer of the kind {found.get('model')!r} that the GGUF file describes"
            f" ({error}); give the folder of the original model instead"
        ) from error
    config: dict[str, Any] = {}
    for word in ("bos", "eos", "unknown", "padding"):
        if (index := found.get(f"{word}_token_id")) is not None and 0 <= index < len(found["tokens"]):
            config[{"unknown": "unk_token", "padding": "pad_token"}.get(word, f"{word}_token")] = found["tokens"][index]
    for word in ("add_bos_token", "add_eos_token"):
        if word in found:
            config[word] = found[word]
    # Sentencepiece vocabularies of older files have no flag: llama.cpp starts their texts with BOS.
    if config.setdefault("add_bos_token", found.get("model") == "llama") and "bos_token" in config:
        start = config["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, found["bos_token_id"])]
        )
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return {TOKENIZER: tokenizer.to_str().encode(), CONFIG: _json(config)}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()
