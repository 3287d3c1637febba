"""The placeholders in a container's argv."""

from __future__ import annotations

import pytest

from pipelines.placeholders import EXECUTOR_INPUT, Placeholder, parse_template, substitute
from quantlib.errors import InvalidInputError


def test_text_without_placeholder() -> None:
    assert parse_template("--name={x} $HOME", "argv") == ("--name={x} $HOME",)
    assert parse_template("", "argv") == ()
    assert substitute((), {}) == ""


def test_every_known_placeholder() -> None:
    text = (
        "a {{$}} b {{$.inputs.parameters['p q']}}{{$.inputs.artifacts['a'].path}}"
        "{{$.inputs.artifacts['a'].uri}} {{$.outputs.parameters['o'].output_file}}"
        "{{$.outputs.artifacts['m'].path}}{{$.outputs.artifacts['m'].uri}}"
    )
    assert parse_template(text, "argv") == (
        "a ",
        EXECUTOR_INPUT,
        " b ",
        Placeholder("inputs.parameters", "p q"),
        Placeholder("inputs.artifacts", "a", "path"),
        Placeholder("inputs.artifacts", "a", "uri"),
        " ",
        Placeholder("outputs.parameters", "o", "output_file"),
        Placeholder("outputs.artifacts", "m", "path"),
        Placeholder("outputs.artifacts", "m", "uri"),
    )


def test_substitutes_once() -> None:
    template = parse_template("--x={{$.inputs.parameters['x']}}!", "argv")
    assert substitute(template, {Placeholder("inputs.parameters", "x"): "{{$}}"}) == "--x={{$}}!"


@pytest.mark.parametrize(
    "text",
    [
        "{{$.outputs.output_file}}",
        "{{$.inputs.artifacts['a']}}",
        "{{$.inputs.artifacts['a'].metadata['k']}}",
        "{{$.inputs.artifacts['a'].output_file}}",
        "{{$.inputs.parameters['a'].path}}",
        "{{$.outputs.parameters['a']}}",
        "{{$.pipeline_job_name}}",
        "{{$.json_escape[1]}}",
        '{"IfPresent": {"InputName": "x", "Then": "y"}}',
        '{"Concat": ["a", "b"]}',
    ],
)
def test_refuses_what_the_launcher_does_not_substitute(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"exec-a\.argv"):
        parse_template(text, "exec-a.argv")
