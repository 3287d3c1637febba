"""What Argo has no form for is refused before a file is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.argo.compiling import write_workflow_template
from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import QUANTIZE
from quantlib.checks.recipe import recipe_from_text
from quantlib.errors import InvalidInputError

RECIPE = """
quantization: {method: gptq, weights: {bits: 4, group_size: 64}}
validation: {prompts: ["PROMPT"]}
"""


def test_every_text_that_argo_would_replace_is_named(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text(
        "store: 's3://{{workflow.name}}'\nhub_secret: '{{=1}}'\n"
    )
    recipe = recipe_from_text(RECIPE.replace("PROMPT", "{{ x }}"))
    options = CompileOptions(str(tmp_path / "profile.yaml"), recipes={"mine": recipe})
    compilation = prepare(QUANTIZE, options)
    with pytest.raises(InvalidInputError) as raised:
        write_workflow_template(compilation, tmp_path / "workflow.yaml")
    assert [str(problem) for problem in raised.value.problems] == [
        "parameter store: holds {{, which Argo would replace",
        "constant recipes: holds {{, which Argo would replace",
        "profile store: holds {{, which Argo would replace",
        "profile hub_secret: holds {{, which Argo would replace",
    ]
    assert not (tmp_path / "workflow.yaml").exists()


def test_braces_of_json_are_no_tags(tmp_path: Path) -> None:
    recipe = recipe_from_text(RECIPE.replace("PROMPT", "a }} b { c"))
    compilation = prepare(QUANTIZE, CompileOptions(recipes={"mine": recipe}))
    changes = {"calibration": {"num_samples": 8}}
    settings = tuple(
        replace(each, default=changes) if each.name == "recipe_changes" else each
        for each in compilation.settings
    )
    file = tmp_path / "workflow.yaml"
    write_workflow_template(replace(compilation, settings=settings), file)
    assert "namespace" not in file.read_text().partition("spec:")[0]
