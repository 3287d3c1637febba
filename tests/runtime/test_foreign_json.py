"""JSON from elsewhere is read, or refused in a line."""

from __future__ import annotations

import math

import pytest

from quantlib.errors import InvalidInputError
from quantlib.runtime.foreign_json import parse_json, parse_mapping


def refusal(data: bytes | str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        parse_json(data, "config.json")
    (problem,) = caught.value.problems
    assert len(str(problem).splitlines()) == 1
    return str(problem)


def test_what_models_hold_is_read() -> None:
    # transformers writes int(1e30) where a tokenizer has no longest text
    text = '{"model_max_length": 1000000000000000019884624838656, "a": [1.5, -2, "\\ud83d\\ude00"]}'
    assert parse_mapping(text.encode(), "x") == {
        "model_max_length": int(1e30),
        "a": [1.5, -2, "\U0001f600"],
    }


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        ('{"a":' * 70 + "0" + "}" * 70, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' twice"),
        ('{"rope_theta": NaN}', "NaN"),
        ('{"rope_theta": -Infinity}', "-Infinity"),
        ('{"rope_theta": 1e400}', "out of range"),
        ('{"hidden_size": ' + "1" * 5000 + "}", "5000 digits"),
        ('{"a": ["\\udc00"]}', "surrogate"),
        ('{"\\ud800": 1}', "surrogate"),
    ],
)
def test_what_would_break_later_is_refused(data: bytes | str, says: str) -> None:
    assert says in refusal(data)


def test_infinity_is_read_where_a_config_may_hold_it() -> None:
    text = '{"time_step_limit": [0.0, Infinity, -Infinity]}'
    assert parse_mapping(text, "config.json", infinite=True) == {
        "time_step_limit": [0.0, math.inf, -math.inf]
    }
    with pytest.raises(InvalidInputError, match="holds NaN"):
        parse_mapping('{"a": NaN}', "config.json", infinite=True)


def test_a_mapping_is_asked_for() -> None:
    with pytest.raises(InvalidInputError, match=r"config\.json: does not hold a mapping"):
        parse_mapping("[]", "config.json")
