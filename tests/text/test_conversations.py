import json
from pathlib import Path

import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.text.conversations import ChatTemplate, Conversation, conversation_of
from quantlib.text.formats import RowError

CHATML = (
    "{{ bos_token }}{% if tools %}[{{ tools | tojson }}]{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "<b>Hi</b>"}]


def model(folder: Path, **files: object) -> FolderSource:
    """A model with these files; JSON where they are no text."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return FolderSource(folder)


def render(source: FolderSource, messages: list, **row: object) -> str:
    template = ChatTemplate.of_model(source)
    assert template is not None
    return template.render(conversation_of(messages, row))


@pytest.mark.parametrize(
    "name", ["tokenizer_config__json", "chat_template__jinja", "chat_template__json"]
)
def test_the_template_wherever_it_is(tmp_path: Path, name: str) -> None:
    files: dict[str, object] = {"tokenizer_config__json": SPECIAL}
    files[name] = CHATML if name.endswith("jinja") else SPECIAL | {"chat_template": CHATML}
    text = render(model(tmp_path, **files), HELLO)
    assert text == "<s><|user|>Hello</s><|assistant|><b>Hi</b></s>"


def test_it_is_what_transformers_writes(tmp_path: Path, tiny_tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    template = (
        "{%- for m in messages %}\n    {%- if loop.index0 > 5 %}{% break %}{% endif %}\n"
        "    {% generation %}{{ m.role ~ ': ' ~ m.content | tojson }}{% endgeneration %}\n"
        "{%- endfor %}\n{{ eos_token }}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    tokenizer.save_pretrained(tmp_path)
    messages = [*HELLO, {"role": "user", "content": "größer < kleiner"}]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False)
    assert render(FolderSource(tmp_path), messages) == wanted


def test_named_templates_and_tools(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain {{ messages[0].content }}"},
        {"name": "tool_use", "template": "with {{ tools | length }} tools"},
    ]
    source = model(tmp_path, tokenizer_config__json={"chat_template": named})
    assert render(source, HELLO) == "plain Hello"
    assert render(source, HELLO, tools='[{"type": "function"}]') == "with 1 tools"


def test_columns_beside_the_messages_are_kept(tmp_path: Path) -> None:
    source = model(tmp_path, tokenizer_config__json=SPECIAL | {"chat_template": CHATML})
    text = render(source, HELLO, system="Be brief.", tools=[{"name": "f"}])
    assert text.startswith('<s>[[{"name": "f"}]]<|system|>Be brief.</s><|user|>Hello')
    first = [{"role": "system", "content": "Mine."}, *HELLO]
    assert "Be brief" not in render(source, first, system="Be brief.")


def test_messages_in_other_spellings() -> None:
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    found = conversation_of(
        [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b", "weight": None},
            {
                "role": "user",
                "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        {},
    ).messages
    assert found[:3] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "cd"},
    ]
    assert found[3]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user"}, "a message has no text"),
        ({"role": "user", "content": 3}, "a message has no text"),
        ({"content": "x"}, "a message has no role"),
        ({"role": "user", "content": [{"type": "video"}]}, "a message holds more than text"),
    ],
)
def test_messages_that_are_none(message: dict, reason: str) -> None:
    with pytest.raises(RowError) as refused:
        conversation_of([{"role": "user", "content": "x"}, message], {})
    assert refused.value.fault.reason == reason


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_a_template_may_not_do_is_the_fault_of_the_row(tmp_path: Path, template: str) -> None:
    source = model(tmp_path, tokenizer_config__json={"chat_template": template})
    with pytest.raises(RowError) as refused:
        render(source, HELLO)
    assert refused.value.fault.reason == "the chat template refuses it"


def test_a_date_is_the_same_on_every_day(tmp_path: Path) -> None:
    source = model(tmp_path, chat_template__jinja="{{ strftime_now('%d %b %Y') }}")
    assert render(source, HELLO) == "26 Jul 2024"


def test_a_template_that_is_none_is_refused(tmp_path: Path) -> None:
    source = model(tmp_path, chat_template__jinja="{% for m in %}")
    with pytest.raises(InvalidInputError, match=r"jinja: its chat template is none"):
        ChatTemplate.of_model(source)


def test_a_model_without_one(tmp_path: Path) -> None:
    assert ChatTemplate.of_model(model(tmp_path, tokenizer_config__json=SPECIAL)) is None
    assert Conversation(HELLO).tools is None
