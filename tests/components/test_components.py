"""The components: their interface, their argv and their documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components import _images
from components.__main__ import ROOT, load_component, render_readme
from quantlib import __version__
from quantlib.steps import ALL_STEP_NAMES

# (parameters, input artifacts, output artifacts, output parameters), as the steps read them
INTERFACES = {
    "resolve": (
        "recipe scheme recipe_changes recipes source num_ranges destination images",
        "",
        "resolve_summary",
        "needed release job",
    ),
    "fetch": (
        "recipe scheme recipe_changes recipes source store",
        "",
        "model texts fetch_summary",
        "checked_recipe",
    ),
    "plan": (
        "recipe num_ranges gpu parallel node_gpus scratch searches store",
        "model texts",
        "plan plan_summary",
        "settled_recipe ranges calibrate_memory calibrate_cpus calibrate_gpus quantize_memory "
        "quantize_cpus quantize_gpus validate_memory validate_cpus validate_gpus tasks_memory "
        "tasks_cpus tasks_gpus",
    ),
    "calibrate": ("recipe store device", "model plan", "calibration calibrate_summary", ""),
    "measure": (
        "recipe block_range store device memory cpus gpus",
        "model calibration",
        "measured measure_summary",
        "",
    ),
    "choose": ("recipe store", "model measured", "chosen choose_summary", "searched_recipe"),
    "smooth": ("recipe store", "model calibration", "smoothing smooth_summary", ""),
    "quantize": (
        "recipe block_range store device memory cpus gpus",
        "model calibration smoothing",
        "quantized quantize_summary",
        "",
    ),
    "merge": ("recipe store", "model quantized", "checkpoint merge_summary", ""),
    "validate": (
        "recipe store device gpus",
        "model plan checkpoint",
        "validation validate_summary metrics report",
        "verdict reason",
    ),
    "tasks": (
        "recipe store device gpus",
        "model texts checkpoint",
        "tasks tasks_summary",
        "verdict reason",
    ),
    "gate": ("verdict reason tasks_verdict tasks_reason model", "", "", ""),
    "publish": (
        "recipe destination job store",
        "checkpoint validation tasks",
        "published publish_summary",
        "address",
    ),
}


def test_every_step_has_a_component_and_no_other_folder_does() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/component.py")}
    assert folders == set(ALL_STEP_NAMES) == set(INTERFACES)


@pytest.mark.parametrize("step", ALL_STEP_NAMES)
def test_interface(step: str) -> None:
    specification = load_component(step).component_spec
    given: tuple[list[str], ...] = ([], [], [], [])
    for name, entry in (specification.inputs or {}).items():
        given["@" in entry.type].append(name)
    for name, entry in (specification.outputs or {}).items():
        given[2 if "@" in entry.type else 3].append(name)
    assert tuple(" ".join(names) for names in given) == INTERFACES[step]


@pytest.mark.parametrize(("step", "output"), [("merge", "checkpoint"), ("publish", "published")])
def test_what_is_served_is_a_model(step: str, output: str) -> None:
    outputs = load_component(step).component_spec.outputs
    assert outputs[output].type.partition("@")[0] == "system.Model"


@pytest.mark.parametrize("step", ALL_STEP_NAMES)
def test_container(step: str) -> None:
    container = load_component(step).component_spec.implementation.container
    assert container.command == ["python", "-m", "quantlib.steps", step]
    assert container.args == ["--executor-input", "{{$}}"]
    assert container.image == _images.named_images().of(step)


def test_only_one_module_names_an_image() -> None:
    sources = [*ROOT.rglob("*.py"), *(ROOT.parent / "pipelines").rglob("*.py")]
    naming = [path.name for path in sources if f":{__version__}" in path.read_text()]
    assert naming == []
    assert _images.QUANTLIB_IMAGE.endswith(f":{__version__}")
    assert [path.name for path in sources if 'QUANTLIB_IMAGE"' in path.read_text()] == [
        "_images.py"
    ]


def test_list_types_survive_compilation() -> None:
    outputs = load_component("plan").component_spec.outputs
    assert outputs["ranges"].type == "List[String]"
    assert load_component("merge").component_spec.inputs["quantized"].is_artifact_list


@pytest.mark.parametrize("step", ALL_STEP_NAMES)
def test_documents(step: str) -> None:
    text = render_readme(step)
    assert (ROOT / step / "README.md").read_text(encoding="utf-8") == text, (
        "run python -m components"
    )
    assert "|  |" not in text, "an input or output lacks a description"


def test_check_reports_drift_and_writes_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, shutil, components.__main__ as m, pathlib;"
        f"copy = pathlib.Path({str(tmp_path)!r}) / 'c';"
        "shutil.copytree(m.ROOT, copy); m.ROOT = copy;"
        "(copy / 'merge' / 'README.md').write_text('old');"
        "sys.argv = ['components', '--check']; sys.exit(m.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "out of date: merge; run python -m components\n"
    assert (tmp_path / "c" / "merge" / "README.md").read_text() == "old"
