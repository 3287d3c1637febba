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


def test_a_problem_is_one_line_whatever_a_file_calls_its_parts() -> None:
    problem = Problem("m.safetensors: a\nerror: b\x1b[2J\ud800", "is corrupt" + "x" * 5000)
    line = str(problem)
    assert line.startswith(r"m.safetensors: a\nerror: b\x1b[2J\ud800: is corrupt")
    assert line.isprintable() and len(line) < 2100
