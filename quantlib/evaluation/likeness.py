"""Whether what is published around the weights is the original's: config, tokenizer, template.

A checkpoint whose figures are good fails in service where its files say something else than the
original's: vLLM builds the model from them, and renders and reads its prompts by them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from quantlib.checkpoint.checkpoint import CONFIG_NAME, read_config
from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.text.chat_template import TEMPLATE_FILES, BrokenTemplateError, ChatTemplate
from quantlib.text.conversations import Conversation
from quantlib.text.formats import RowError
from quantlib.text.tokenizer import load_tokenizer, tokenizer_digests

_MAY_DIFFER = frozenset(
    {
        *("quantization_config", "compression_config", "dtype", "torch_dtype", "architectures"),
        *("auto_map", "transformers_version", "use_cache", "tie_word_embeddings", "pad_token_id"),
        *("num_nextn_predict_layers", "mtp_num_hidden_layers", "id2label", "label2id"),
    }
)
"""Fields of a config that say nothing of what the model's blocks compute, or follow from what was
quantized; a head that was the embedding may be a tensor of its own."""

_SHOWN = 3

_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.\n\tdef f(x): return x ** 2  # ok",
    "Größe, naïve café; 你好世界 — привет 🙂",
)
_CONVERSATION = Conversation(
    [
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And three?"},
    ]
)


def file_findings(original: FileSource, published: FileSource) -> list[str]:
    """What config, tokenizer and chat template of a checkpoint do that the original's do not.

    A checkpoint without a tokenizer is served with the original's, and not looked at for one.

    Args:
        original: The original's files.
        published: The checkpoint's.

    Returns:
        A sentence for each.
    """
    findings = config_findings(read_config(original), read_config(published))
    there = tokenizer_digests(published)
    if not there or there == tokenizer_digests(original):
        return findings
    if any(name.startswith("tokenizer.") or name == "vocab.json" for name in there):
        findings += tokenizer_findings(original, published)
    if any(name in TEMPLATE_FILES for name in there):
        findings += template_findings(original, published)
    return findings


def config_findings(original: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """Fields that decide what is computed, and are not the original's.

    Where the two are written differently, both are read by transformers first: versions of it call
    fields by other names, and leave out what is the default.
    """
    apart = list(_differences(original, published))
    if apart:
        read = _as_read(original), _as_read(published)
        if read[0] is not None and read[1] is not None:
            apart = list(_differences(read[0], read[1]))
    said = [
        f"{CONFIG_NAME}: {field} is {_shown(now)}, the original's is {_shown(before)}"
        for field, before, now in apart[:_SHOWN]
    ]
    if len(apart) > _SHOWN:
        said.append(f"{CONFIG_NAME}: {len(apart) - _SHOWN} more fields are not the original's")
    return said


def _differences(
    original: Mapping[str, Any], published: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for field in dict.fromkeys((*original, *published)):
        if field in _MAY_DIFFER or field.startswith("_"):
            continue
        before, now = original.get(field), published.get(field)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{prefix}{field}.")
        elif before != now:
            yield f"{prefix}{field}", before, now


def _as_read(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A config as transformers reads it, with its defaults; None where it does not know it."""
    from transformers import AutoConfig

    plain = {name: value for name, value in config.items() if name not in _MAY_DIFFER}
    try:
        made = AutoConfig.for_model(plain.pop("model_type"), **plain)
        read: dict[str, Any] = json.loads(json.dumps(made.to_dict(), default=str))
    except Exception:  # a class of the library's, with a config of anybody's making
        return None
    return read


def _shown(value: Any) -> str:
    return "not there" if value is None else json.dumps(value, default=str)


def tokenizer_findings(original: FileSource, published: FileSource) -> list[str]:
    """How a tokenizer reads texts in another way than the original's."""
    before = load_tokenizer(original)
    try:
        now = load_tokenizer(published)
    except InvalidInputError as error:
        return [f"the tokenizer cannot be read: {error}"]
    expected, found = (
        [each.encode(text, add_special_tokens=False).ids for text in _TEXTS]
        for each in (before, now)
    )
    if expected != found:
        return ["the tokenizer reads text as other tokens than the original's"]
    opened, opens = (each.encode(_TEXTS[0]).ids for each in (before, now))
    if opened == opens:
        return []
    special = [token for token in opened if token not in expected[0]]
    words = " ".join(str(before.id_to_token(token)) for token in special)
    if opens == expected[0]:
        return [f"the tokenizer puts no {words} around a text, as the original's does"]
    return ["the tokenizer puts other special tokens around a text than the original's"]


def template_findings(original: FileSource, published: FileSource) -> list[str]:
    """How a chat template renders conversations in another way than the original's."""
    expected = _rendered(original)
    if isinstance(expected, Exception):
        return []  # what the original cannot do is not asked of the checkpoint
    found = _rendered(published)
    if isinstance(found, Exception):
        return [f"the chat template does not render: {found}"]
    if expected == found:
        return []
    if found is None:
        return ["there is no chat template, and the original has one"]
    return ["the chat template renders conversations in another way than the original's"]


def _rendered(source: FileSource) -> str | Exception | None:
    try:
        template = ChatTemplate.of_model(source)
        return None if template is None else template.render(_CONVERSATION)
    except (QuantlibError, RowError, BrokenTemplateError) as error:
        return error
