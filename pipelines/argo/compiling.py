"""A workflow in the form that Argo Workflows takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipelines.compiling import Compilation
from quantlib.errors import InvalidInputError, Problem
from quantlib.runtime.distribution import needing


def write_workflow_template(compilation: Compilation, path: Path, *, namespace: str = "") -> None:
    """Writes the ``WorkflowTemplate`` as YAML, creating the folder that it goes to.

    An empty namespace leaves open where the object goes.

    Raises:
        InvalidInputError: A text holds what Argo would take for a tag; with one problem for each.
        QuantlibError: hera or kfp is not installed.
    """
    if problems := list(_tags(compilation)):
        raise InvalidInputError(problems)
    with needing("pipelines", "hera", "kfp"):
        from pipelines.argo.workflow import workflow_template

        document = workflow_template(compilation, namespace=namespace).to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def _tags(compilation: Compilation) -> Iterator[Problem]:
    """What of a compilation Argo would replace: it looks for tags wherever texts stand."""
    parts = {
        "parameter": {each.name: dataclasses.asdict(each) for each in compilation.settings},
        "constant": dataclasses.asdict(compilation.constants),
        "profile": compilation.profile.model_dump(),
        "image": dataclasses.asdict(compilation.images),
        "label": compilation.labels,
    }
    for part, named in parts.items():
        for name, value in named.items():
            # JSON itself has no {{: its keys are strings.
            if "{{" in json.dumps(value, default=str):
                yield Problem(f"{part} {name}", "holds {{, which Argo would replace")
