import json
import re
from pathlib import Path

import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.text.chat_template import BrokenTemplateError, ChatTemplate
from quantlib.text.conversations import Conversation, conversation_of
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


def test_what_a_template_refuses_is_the_fault_of_the_row(tmp_path: Path) -> None:
    refusing = "{{ raise_exception('roles must alternate') }}"
    source = model(tmp_path, tokenizer_config__json={"chat_template": refusing})
    with pytest.raises(RowError) as refused:
        render(source, HELLO)
    assert refused.value.fault.reason == "the chat template refuses it"
    assert refused.value.fault.detail == "roles must alternate"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ persona.name }}", "UndefinedError: 'persona' is undefined"),
        ("{{ messages[0].content + none }}", "TypeError"),
    ],
)
def test_a_template_that_fails_is_broken_at_a_line(
    tmp_path: Path, template: str, what: str
) -> None:
    lines = "{% for m in messages %}\n{{ m.role }}\n" + template + "\n{% endfor %}"
    source = model(tmp_path, tokenizer_config__json={"chat_template": lines})
    with pytest.raises(
        BrokenTemplateError, match="line 3 of the chat template: " + re.escape(what)
    ):
        render(source, HELLO)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
WITH_TOOLS = [
    HELLO[0],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "7"},
    {"role": "assistant", "content": "Seven."},
]
TOOLS_TEMPLATE = (
    "{% if tools %}{{ tools | length }} tools {% endif %}{% for m in messages %}{{ m.role }}:"
    "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }})"
    "{% endfor %}{{ m.content }} {% endfor %}"
)


def test_calls_of_tools_and_what_they_give_are_written(tmp_path: Path) -> None:
    source = model(tmp_path, chat_template__jinja=TOOLS_TEMPLATE)
    wanted = '1 tools user:Hello assistant:f({"x": 1}) tool:7 assistant:Seven. '
    assert render(source, WITH_TOOLS, tools=[TOOL]) == wanted


def test_a_template_that_knows_no_tools_is_given_none(tmp_path: Path) -> None:
    source = model(tmp_path, tokenizer_config__json=SPECIAL | {"chat_template": "{{ messages }}"})
    assert "Hello" in render(source, HELLO)
    for messages, tools in ((WITH_TOOLS, None), (HELLO, [TOOL])):
        with pytest.raises(RowError) as refused:
            render(source, messages, tools=tools)
        assert refused.value.fault.reason == "has tools, and the chat template writes none"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("read", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_by_whatever_name(tmp_path: Path, name: str, read: str) -> None:
    template = f"{{% for m in messages %}}<think>{{{{ m.{read} }}}}</think>{{% endfor %}}"
    source = model(tmp_path, chat_template__jinja=template)
    message = {"role": "assistant", "content": "Four.", name: "Two and two."}
    assert render(source, [message]) == "<think>Two and two.</think>"


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
@pytest.mark.parametrize("switch", [True, False])
def test_thinking_on_and_off(tmp_path: Path, name: str, switch: bool) -> None:
    template = "{{ 'on' if enable_thinking else 'off' }} {{ 'on' if thinking else 'off' }}"
    source = model(tmp_path, chat_template__jinja=template)
    wanted = "on on" if switch else "off off"
    assert render(source, HELLO, chat_template_kwargs={name: switch}) == wanted
    assert render(source, HELLO, chat_template_kwargs=json.dumps({name: switch})) == wanted
    assert render(source, HELLO) == "off off"


def test_a_row_does_not_replace_what_is_the_models(tmp_path: Path) -> None:
    source = model(
        tmp_path,
        tokenizer_config__json=SPECIAL | {"chat_template": "{{ eos_token }}{{ messages }}"},
    )
    said = render(source, HELLO, chat_template_kwargs={"eos_token": "x", "messages": []})
    assert said.startswith("</s>[{")


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
