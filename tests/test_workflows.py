"""The workflows, and the document that says how other repositories call one."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def workflow(name: str) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(
        (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    )
    return content


def promotion() -> dict[str, Any]:
    called: dict[str, Any] = workflow("promote")[True]["workflow_call"]  # `on` is true in YAML 1.1
    return called


def steps() -> list[dict[str, Any]]:
    found = (yaml.safe_load(path.read_text())["jobs"] for path in WORKFLOWS)
    return [step for jobs in found for job in jobs.values() for step in job["steps"]]


def test_actions_are_pinned_by_commit() -> None:
    uses = [step["uses"] for step in steps() if "uses" in step]
    assert len(uses) > 8
    assert [one for one in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", one)] == []


def test_no_checkout_leaves_its_token_behind() -> None:
    checkouts = [step for step in steps() if "actions/checkout" in step.get("uses", "")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_secrets_are_known_to_single_steps_only() -> None:
    for path in WORKFLOWS:
        content = yaml.safe_load(path.read_text())
        for level in (content, *content["jobs"].values()):
            assert "secrets." not in str(level.get("env", ""))
    knowing = [step for step in steps() if "secrets." in str(step)]
    assert not [step for step in knowing if "make" in str(step.get("run", "")).split()]


def test_promotion_asks_for_a_signature_unless_told_otherwise() -> None:
    assert promotion()["inputs"]["require-signature"]["default"] is True


def propose(tmp_path: Path, repository: str) -> subprocess.CompletedProcess[str]:
    """Runs the step that has the token, with a stand-in that shows what git would send where."""
    (step,) = (step for step in steps() if step.get("name") == "Propose the change")
    quantlib = tmp_path / ".venv" / "bin" / "quantlib"
    quantlib.parent.mkdir(parents=True, exist_ok=True)
    urls = [
        "https://git.example.org/team/serving.git/info/refs",
        "https://git.example.org/team/another.git/info/refs",
        "https://git.example.org.evil.example/team/serving.git",
        "https://other.example/team/serving.git",
    ]
    quantlib.write_text(
        '#!/bin/sh\necho "$@"\nenv | grep -c t0ken\n'
        + "".join(
            f"git config --get-urlmatch http.extraHeader {url} || echo none\n" for url in urls
        )
    )
    quantlib.chmod(0o755)
    names = dict.fromkeys(step["env"], "") | {
        "HOME": str(tmp_path),
        "RUNNER_TEMP": str(tmp_path),
        "TOKEN": "t0ken",
        "REPOSITORY": repository,
        "REQUIRED": "yes",
    }
    return subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]} | names,
        capture_output=True,
        text=True,
    )


def test_the_token_goes_to_its_repository_and_nowhere_else(tmp_path: Path) -> None:
    done = propose(tmp_path, "https://git.example.org/team/serving.git")
    assert done.returncode == 0, done.stderr
    command, in_clear, *headers = done.stdout.splitlines()
    assert "--require-signature" in command.split()
    assert in_clear == "0"
    assert headers[0].startswith("Authorization: Basic ")
    assert headers[1:] == ["none"] * 3
    assert list(tmp_path.rglob(".gitconfig")) == []


def test_the_token_is_for_https(tmp_path: Path) -> None:
    done = propose(tmp_path, "http://git.example.org/team/serving.git")
    assert (done.returncode, done.stdout) == (2, "")
    assert "https only" in done.stderr


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
