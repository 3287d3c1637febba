"""Receipts that were damaged, or made to hurt, are told in one line."""

import pytest

from quantlib.errors import InvalidInputError
from quantlib.store import Receipt

KEY = "ab" * 32
SOUND = f'{{"schema":"quantlib/receipt/2","step":"s","key":"{KEY}","code":{{}},"parameters":{{}},\
"inputs":{{}},"files":{{}},"facts":FACTS}}'


def test_a_sound_receipt_is_read() -> None:
    assert Receipt.from_json(SOUND.replace("FACTS", '{"a": 1.5}')).facts == {"a": 1.5}


@pytest.mark.parametrize(
    "facts",
    [
        "{",
        "NaN",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        '{"a":' * 999 + "1" + "}" * 999,
        '"\\ud800"',
        "7",
    ],
)
def test_what_is_none_is_one_line(facts: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Receipt.from_json(SOUND.replace("FACTS", facts).encode(), "steps/s/x.json")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("steps/s/x.json: is ")
