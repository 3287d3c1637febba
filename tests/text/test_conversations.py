import pytest

from quantlib.text.conversations import conversation_of
from quantlib.text.formats import RowError


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
