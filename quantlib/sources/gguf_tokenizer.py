"""The tokenizer that a GGUF file describes, in Hugging Face's files.

transformers rebuilds it from the vocabulary and the merges. Three things that llama.cpp ties to the
kind of vocabulary rather than states (``src/llama-vocab.cpp``) are added here.
"""

from __future__ import annotations

from pathlib import Path

from quantlib.errors import InvalidInputError
from quantlib.sources.gguf_header import GgufHeader

_LLAMA3 = ("llama3", "llama-v3", "llama-bpe")
_IGNORE_MERGES = (*_LLAMA3, "tekken")
"""A word that is in the vocabulary is one token, whatever the merges make of it."""

_SPLIT_DIGITS = ("smollm",)
_ADD_BOS = (*_LLAMA3, "tekken")


def gguf_tokenizer_files(header: GgufHeader, scratch: Path) -> dict[str, bytes]:
    """``tokenizer.json``, ``tokenizer_config.json`` and the chat template, if there is one.

    Args:
        header: The file's header.
        scratch: A folder for files in the making.

    Raises:
        InvalidInputError: transformers cannot rebuild a tokenizer from what the file holds.
    """
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    metadata = header.metadata
    sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    pre = metadata.get("tokenizer.ggml.pre")
    # In a folder of its own, because transformers reads what lies beside the file, too.
    link = scratch / "gguf" / "model.gguf"
    link.parent.mkdir()
    link.symlink_to(header.path.resolve())
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            link.parent,
            gguf_file=link.name,
            add_bos_token=metadata.get(
                "tokenizer.ggml.add_bos_token", sentencepiece or pre in _ADD_BOS
            ),
            add_eos_token=metadata.get("tokenizer.ggml.add_eos_token", False),
        )
    except Exception as error:  # a vocabulary from elsewhere breaks its reader in many ways
        raise InvalidInputError.one(
            str(header.path),
            f"no tokenizer can be made of its vocabulary: {type(error).__name__}: {error}",
            "take the model's safetensors release",
        ) from error
    backend = tokenizer.backend_tokenizer
    if not sentencepiece and pre in _IGNORE_MERGES:
        backend.model.ignore_merges = True
    if not sentencepiece and pre in _SPLIT_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    saved = scratch / "tokenizer"
    tokenizer.save_pretrained(saved)
    return {file.name: file.read_bytes() for file in sorted(saved.iterdir())}
