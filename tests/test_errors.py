"""What errors say."""

from quantlib.errors import InvalidInputError, Problem


def test_every_problem_is_said_once() -> None:
    tokenizer = Problem("tokenizer.json", "cannot be read", "fetch the model again")
    config = Problem("config.json", "is no mapping")
    error = InvalidInputError([tokenizer, config, tokenizer])
    assert error.problems == (tokenizer, config)
    assert str(error) == (
        "tokenizer.json: cannot be read; fetch the model again\nconfig.json: is no mapping"
    )
