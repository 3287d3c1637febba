"""The translation to Argo Workflows, run by a stand-in for Argo's controller.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from argo_interpreter import Workflow
from kfp import dsl

Document = dict[str, Any]
Step = Callable[[str], dsl.ContainerSpec]
Translate = Callable[..., Document]


def test_texts_reach_a_step_as_they_are(translate: Translate, step: Step, tmp_path: Path) -> None:
    @dsl.container_component
    def use(text: str, number: int, flags: list, whole: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return step("write('whole', inputs)")

    @dsl.pipeline(name="toy")
    def toy(text: str, number: int = 3) -> None:
        use(text=text, number=number, flags=["<a>", 'b"'])

    text = 'a: "b"\n# it\'s \\ here\n\ttab: {x: {y: "é }} <&>"}}\n'
    workflow = Workflow(translate(toy), tmp_path / "argo")
    assert workflow.run(text=text) == "Succeeded"
    (written,) = (tmp_path / "argo" / "pods").glob("*-use/outputs/whole")
    assert json.loads(written.read_text()) == {
        "text": text,
        "number": 3,
        "flags": ["<a>", 'b"'],
    }


@pytest.fixture(scope="module")
def ranges(step: Step) -> Any:
    """Split -> work for each part -> join, and a branch on what it found."""

    @dsl.container_component
    def split(count: int, parts: dsl.OutputPath(list[str])) -> dsl.ContainerSpec:
        return step("write('parts', [f'{i}:{i + 1}' for i in range(inputs['count'])])")

    @dsl.container_component
    def work(
        part: str, piece: dsl.Output[dsl.Artifact], name: dsl.OutputPath(str)
    ) -> dsl.ContainerSpec:
        return step(
            "artifact('outputs', 'piece').write_text('<' + inputs['part']);"
            "write('name', inputs['part'])"
        )

    @dsl.container_component
    def join(
        pieces: dsl.Input[list[dsl.Artifact]], names: list[str], whole: dsl.OutputPath(str)
    ) -> dsl.ContainerSpec:
        return step(
            "files_of = sorted(artifact('inputs', 'pieces').iterdir());"
            "pieces = [path.read_text() for path in files_of];"
            "write('whole', ''.join(pieces) + '|' + ' '.join(inputs['names']))"
        )

    @dsl.container_component
    def tell(what: str) -> dsl.ContainerSpec:
        return step("print(inputs['what'])")

    @dsl.pipeline(name="toy")
    def toy(count: int) -> None:
        with dsl.ParallelFor(split(count=count).outputs["parts"], parallelism=2) as part:
            worked = work(part=part)
        joined = join(
            pieces=dsl.Collected(worked.outputs["piece"]),
            names=dsl.Collected(worked.outputs["name"]),
        )
        with dsl.If(joined.outputs["whole"] == "<0:1<1:2|0:1 1:2"):
            tell(what="two")
        with dsl.Else():
            tell(what=joined.outputs["whole"])

    return toy


@pytest.mark.parametrize(("count", "said"), [("2", "two"), ("3", "<0:1<1:2<2:3|0:1 1:2 2:3")])
def test_a_fan_out_is_collected_as_a_folder(
    ranges: Any, translate: Translate, tmp_path: Path, count: str, said: str
) -> None:
    document = translate(ranges)
    (loop,) = (each for each in document["spec"]["templates"] if each["name"] == "for-loop-1")
    assert loop["parallelism"] == 2
    workflow = Workflow(document, tmp_path)
    assert workflow.run(count=count) == "Succeeded"
    *_, told, handler = workflow.pods
    assert told.log == f"{said}\n"
    assert handler.log == "Succeeded []\n"
    names = [f"{i}:{i + 1}" for i in range(int(count))]
    folder = workflow.repository / "run-1" / "u-1" / "work" / "piece"
    assert sorted(path.name for path in folder.iterdir()) == names


@pytest.mark.parametrize(("code", "attempts"), [(1, 3), (137, 3), (2, 1), (3, 1)])
def test_a_final_exit_code_is_not_retried(
    translate: Translate, step: Step, tmp_path: Path, code: int, attempts: int
) -> None:
    @dsl.container_component
    def fail() -> dsl.ContainerSpec:
        return step(f"sys.exit({code})")

    @dsl.container_component
    def after() -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy() -> None:
        after().after(fail().set_retry(2))

    workflow = Workflow(translate(toy), tmp_path)
    assert workflow.run() == "Failed"
    assert workflow.ran() == ["fail"] * attempts + ["report-outcome"]
    assert workflow.pods[-1].log == "Failed []\n"


RECIPE = """
# "Quotes", it's \\ all here: <&> é
quantization: {weights: {bits: 4, group_size: 32}}
calibration:
  num_samples: 8
  sequence_length: 64
num_ranges: 2
validation:
  engine: 'transformers'
  num_samples: 4
  sequence_length: 64
  prompts: ["He said \\"no\\"\\n"]
  max_new_tokens: 4
  thresholds: {max_perplexity_increase: 10, max_kl_mean: LIMIT, min_top1_agreement: 0.001}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "status", "last"), [("20", "Succeeded", "publish"), ("1e-9", "Failed", "gate")]
)
def test_the_real_steps_run_as_argo_starts_them(
    quantization: Callable[[str], Document],
    tiny_llama: Path,
    tmp_path: Path,
    limit: str,
    status: str,
    last: str,
) -> None:
    workflow = Workflow(quantization("gpu"), tmp_path / "argo")
    outcome = workflow.run(
        recipe=RECIPE.replace("LIMIT", limit),
        store=str(tmp_path / "store"),
        source=str(tiny_llama),
        destination=str(tmp_path / "published"),
        device="cpu",
    )
    assert outcome == status, workflow.pods[-2].log
    steps = ["fetch", "plan", "calibrate", "smooth", "quantize", "quantize", "merge", "validate"]
    assert workflow.ran() == [*steps, last, "report-outcome"]
    assert workflow.pods[-2].exit_code == (3 if last == "gate" else 0)
    for each in workflow.pods:
        if each.template["name"] in ("calibrate", "quantize", "validate"):
            (main,) = json.loads(each.template["podSpecPatch"])["containers"]
            assert re.fullmatch(r"\d+Gi", main["resources"]["limits"]["memory"])
    assert len(list(tmp_path.glob("published/*/*/manifest.json"))) == (last == "publish")
    assert len(list(workflow.repository.glob("run-1/*-validate/report.html"))) == 1
