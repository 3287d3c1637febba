"""The workflow that other repositories call, and the document that says how."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


def promotion() -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / "promote.yml").read_text()
    workflow: dict[Any, Any] = yaml.safe_load(text)
    called: dict[str, Any] = workflow[True]["workflow_call"]  # `on` is true in YAML 1.1
    return called


def test_secrets_have_names_that_secrets_may_have() -> None:
    """Or else `secrets: inherit` gives none of them, without a word."""
    for name in promotion()["secrets"]:
        assert re.fullmatch(r"(?!GITHUB_)[A-Z_][A-Z0-9_]*", name)


def test_the_document_gives_the_inputs_that_there_are() -> None:
    text = (ROOT / "docs" / "promotion.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (caller,) = (block for block in blocks if "promote.yml" in block)
    given = yaml.safe_load(caller)["jobs"]["promote"]["with"]
    inputs = promotion()["inputs"]
    assert set(given) <= set(inputs)
    assert {name for name, each in inputs.items() if each["required"]} <= set(given)
    for name in promotion()["secrets"]:
        assert f"`{name}`" in text
