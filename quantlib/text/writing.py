"""How documents are written for a model, and what stands between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError
from quantlib.recipe import Content
from quantlib.text.chat_template import BrokenTemplateError, ChatTemplate, special_tokens
from quantlib.text.conversations import Conversation
from quantlib.text.encoder import Encoder
from quantlib.text.formats import RowError

_ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "</s>",
    "<eos>",
    "<EOS_TOKEN>",
)
"""What models are trained to read behind a document, by families that have a special token of such
a name: GPT-2, GPT-NeoX, Qwen, Phi, GLM, OLMo, SmolLM, gpt-oss; Llama 3 and 4, Granite; DeepSeek;
Llama 2, Mistral, ERNIE; Gemma; Command. The first that a tokenizer has: instruct models call the
end of a turn their ``eos_token``, and keep this one beside it."""

_SAMPLE = Conversation(
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
)


@dataclass(frozen=True)
class Writing:
    """How documents are written for a model, and what stands between them.

    Attributes:
        content: Whether conversations go through the model's chat template.
        asked: What the recipe says; ``auto`` chooses by whether there is a template.
        document_end: The token that is put behind a document; empty for none.
    """

    content: Literal["text", "conversations"]
    asked: Content
    document_end: str

    def in_words(self) -> str:
        """What was chosen, why, and what stands between documents."""
        match self.content, self.asked:
            case "conversations", "auto":
                words = "conversations as the model's chat template writes them"
            case "conversations", _:
                words = "conversations alone, as asked, by the model's chat template"
            case _, "auto":
                words = "text, for the model has no chat template"
            case _:
                words = "text, as asked, without the chat template"
        end = self.document_end
        return f"{words}; {f'documents end with {end}' if end else 'nothing between documents'}"


PLAIN_WRITING = Writing("text", "text", "")


def writing_for(
    name: str,
    content: Content,
    document_end: str,
    source: FileSource,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> Writing:
    """How a text is written for a model.

    Args:
        name: What to call the text.
        content: What is asked for.
        document_end: ``auto``, ``none``, or a token.
        source: The model's files.
        tokenizer: Its tokenizer.
        template: Its chat template.

    Raises:
        InvalidInputError: Conversations are asked for and there is no template, or a token that the
            tokenizer does not have.
    """
    if content == "conversations" and template is None:
        raise InvalidInputError.one(
            name,
            "conversations are asked for, and the model has no chat template to write them by",
            "let base models have text (content: text, or auto), or give the model's "
            "chat_template.jinja",
        )
    written: Literal["text", "conversations"] = "conversations"
    if template is None or content == "text":
        written = "text"
    if document_end == "auto":
        end = _document_end(source, tokenizer, template)
    else:
        end = "" if document_end == "none" else document_end
    if end and tokenizer.token_to_id(end) is None:
        raise InvalidInputError.one(
            name,
            f"its documents are to end with {end!r}, which the model's tokenizer has not",
            "give document_end a token of the model, none, or auto",
        )
    return Writing(written, content, end)


def _document_end(source: FileSource, tokenizer: Tokenizer, template: ChatTemplate | None) -> str:
    """The token that a model was trained to read between documents; empty where none is known."""
    closing = Encoder(tokenizer).closing
    if len(closing):
        return str(tokenizer.id_to_token(int(closing[-1])))
    special = {
        each.content for each in tokenizer.get_added_tokens_decoder().values() if each.special
    }
    for known in _ENDS:
        if known in special:
            return known
    end = special_tokens(source).get("eos_token", "")
    return "" if tokenizer.token_to_id(end) is None or _ends_turns(template, end) else end


def _ends_turns(template: ChatTemplate | None, token: str) -> bool:
    """Whether a chat template writes a token, so that it ends what is said, and not documents."""
    if template is None:
        return False
    try:
        return token in template.render(_SAMPLE)
    except (RowError, BrokenTemplateError):
        return True
