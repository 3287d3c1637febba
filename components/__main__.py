"""``python -m components`` writes the README of every component; ``--check`` only compares."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

from quantlib.steps import ALL_STEP_NAMES

ROOT = Path(__file__).parent
_TYPES = {"String": "string", "Integer": "integer", "List[String]": "list of strings"}


def load_component(step: str) -> Any:
    """The kfp component of a step."""
    return getattr(importlib.import_module(f"components.{step}"), step)


def load_metadata(step: str) -> dict[str, Any]:
    """What ``metadata.yaml`` of a step's component says."""
    return yaml.safe_load((ROOT / step / "metadata.yaml").read_text(encoding="utf-8"))


def load_owners(step: str) -> list[str]:
    """Who approves changes of a step's component."""
    return yaml.safe_load((ROOT / step / "OWNERS").read_text(encoding="utf-8"))["approvers"]


def render_readme(step: str) -> str:
    """The README of a step's component, from its signature, docstring and metadata."""
    component = load_component(step)
    specification = component.component_spec
    docstring = docstring_parser.parse(component.pipeline_func.__doc__)
    descriptions = {
        param.arg_name: " ".join((param.description or "").split()) for param in docstring.params
    }
    metadata = load_metadata(step)
    container = specification.implementation.container
    services = metadata["dependencies"]["external_services"]
    lines = [
        f"# {step}",
        "",
        "<!-- Written by `python -m components` from component.py and metadata.yaml. -->",
        "",
        docstring.short_description or "",
        "",
        *(docstring.long_description or "").splitlines(),
        "",
        "Runs `" + " ".join([*container.command, *container.args]) + "`.",
        "",
        *_table("Inputs", specification.inputs or {}, descriptions),
        *_table("Outputs", specification.outputs or {}, descriptions),
        "## Metadata",
        "",
        f"- Stability: {metadata['stability']}",
        f"- Kubeflow: {_dependencies(metadata['dependencies']['kubeflow'])}",
        f"- External services: {_dependencies(services) or 'none'}",
        f"- Tags: {', '.join(metadata['tags'])}",
        f"- Last verified: {metadata['lastVerified']:%Y-%m-%d}",
        f"- Owners: {', '.join(load_owners(step))}",
    ]
    return "\n".join(lines) + "\n"


def _table(
    title: str, entries: Mapping[str, Any], descriptions: Mapping[str, str]
) -> Iterator[str]:
    if not entries:
        return
    yield f"## {title}"
    yield ""
    yield "| name | type | description |"
    yield "|---|---|---|"
    for name, entry in entries.items():
        kind = entry.type.partition("@")[0]
        kind = f"list of {kind}" if entry.is_artifact_list else _TYPES.get(kind, kind)
        yield f"| `{name}` | {kind} | {descriptions[name]} |"
    yield ""


def _dependencies(entries: list[dict[str, str]]) -> str:
    return ", ".join(" ".join(entry.values()) for entry in entries)


def main() -> int:
    """Writes or compares every README; 1 where one is out of date."""
    parser = argparse.ArgumentParser(prog="python -m components", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    outdated = []
    for step in ALL_STEP_NAMES:
        path = ROOT / step / "README.md"
        text = render_readme(step)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(step)
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and outdated:
        print(f"out of date: {', '.join(outdated)}; run python -m components", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
