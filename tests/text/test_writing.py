import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.text.chat_template import ChatTemplate
from quantlib.text.writing import Writing, writing_for

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tokenizer_with(*special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def writing(folder: Path, tokenizer: Tokenizer, content="auto", end="auto", **config) -> Writing:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    source = FolderSource(folder)
    template = ChatTemplate.of_model(source)
    return writing_for("the text", content, end, source, tokenizer, template)


@pytest.mark.parametrize(
    ("special", "eos", "wanted"),
    [
        (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "<|im_end|>", "<|endoftext|>"),
        (["<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"], "<|eot_id|>", "<|end_of_text|>"),
        (["<s>", "</s>"], "</s>", "</s>"),
        (["<bos>", "<eos>", "<end_of_turn>"], "<eos>", "<eos>"),
        (["[BOS]", "[EOS]"], "[EOS]", "[EOS]"),
        (["<|im_start|>", "<|im_end|>"], "<|im_end|>", ""),
        (["<|im_end|>"], "[EOS]", ""),
    ],
)
def test_what_ends_documents(tmp_path: Path, special: list, eos: str, wanted: str) -> None:
    made = writing(tmp_path, tokenizer_with(*special), eos_token=eos, chat_template=CHATML)
    assert made == Writing("conversations", "auto", wanted)


def test_what_the_tokenizer_puts_there_itself(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("<|endoftext|>", "[SEP]")
    separator = ("[SEP]", tokenizer.token_to_id("[SEP]"))
    tokenizer.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[separator])
    assert writing(tmp_path, tokenizer).document_end == "[SEP]"


def test_what_is_asked_for(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("<|endoftext|>", "[SEP]")
    assert writing(tmp_path, tokenizer, end="none").document_end == ""
    assert writing(tmp_path, tokenizer, end="[SEP]").document_end == "[SEP]"
    with pytest.raises(InvalidInputError, match=r"'\[CLS\]', which the model's tokenizer has not"):
        writing(tmp_path, tokenizer, end="[CLS]")


def test_the_template_decides_and_words_say_so(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("<|endoftext|>")
    base = writing(tmp_path, tokenizer)
    assert base.content == "text"
    words = "text, for the model has no chat template; documents end with <|endoftext|>"
    assert base.in_words() == words
    chat = writing(tmp_path, tokenizer, end="none", chat_template=CHATML)
    assert chat.content == "conversations"
    words = "conversations as the model's chat template writes them; nothing between documents"
    assert chat.in_words() == words
    asked = writing(tmp_path, tokenizer, content="text", chat_template=CHATML)
    assert asked.in_words().startswith("text, as asked, without the chat template")
    only = writing(tmp_path, tokenizer, content="conversations", chat_template=CHATML)
    assert only.in_words().startswith("conversations alone, as asked")


def test_conversations_of_a_model_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as refused:
        writing(tmp_path, tokenizer_with(), content="conversations")
    (problem,) = refused.value.problems
    assert "no chat template" in problem.what
    assert "content: text" in problem.remedy
