"""Runs a WorkflowTemplate on this machine, where no controller of Argo can be had.

A small stand-in for the controller and its executor, for what our templates hold. How tags are
replaced follows argo-workflows (util/template, workflow/common/util.go): in the JSON of a template,
first the variables of the run, then the inputs, whose values are searched too; what is unknown
stays. A pod is a process, whose /inputs and /outputs are folders of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

_TAG = re.compile(r"{{(.*?)}}", re.DOTALL)
_REFERENCE = re.compile(r"\b(?:inputs|tasks|lastRetry)(?:\.\w+|\['[^']+'\])+")
_OPERATORS = (("&&", " and "), ("||", " or "))
_FUNCTIONS = {
    "toJson": lambda value: json.dumps(value, ensure_ascii=False),
    "asInt": int,
    "asFloat": float,
    "true": True,
    "false": False,
}


def substitute(value: Any, variables: Mapping[str, str]) -> Any:
    """A value with its tags replaced, all in one pass."""

    def replace(match: re.Match[str]) -> str:
        tag = match[1]
        if tag.startswith("="):
            result = evaluate(json.loads(f'"{tag[1:]}"'), variables)
        else:
            result = variables.get(tag)
        if result is None:
            return match[0]
        text = result if isinstance(result, str) else json.dumps(result)
        return json.dumps(text)[1:-1]

    return json.loads(_TAG.sub(replace, json.dumps(value)))


def evaluate(expression: str, variables: Mapping[str, str]) -> Any:
    """The value of an expression, or None where one of its variables is unknown."""
    names: dict[str, str] = {}

    def refer(match: re.Match[str]) -> str:
        parts = re.findall(r"\w+|'[^']+'", match[0])
        name = ".".join(part.strip("'") for part in parts)
        names[f"_{len(names)}"] = name
        return f"_{len(names) - 1}"

    text = _REFERENCE.sub(refer, expression)
    for ours, pythons in _OPERATORS:
        text = text.replace(ours, pythons)
    text = re.sub(r"!(?!=)", " not ", text)
    if any(name not in variables for name in names.values()):
        return None
    values = {alias: variables[name] for alias, name in names.items()}
    return eval(text.strip(), {"__builtins__": {}}, {**_FUNCTIONS, **values})


@dataclass
class Outputs:
    """What a template put out: texts of parameters, and keys of artifacts."""

    parameters: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)


@dataclass
class Pod:
    """One attempt of a container."""

    template: Mapping[str, Any]
    argv: list[str]
    exit_code: int
    log: str


class PodFailedError(Exception):
    """A pod failed, for good."""


class Workflow:
    """One run of a WorkflowTemplate.

    Args:
        document: The WorkflowTemplate.
        folder: Where the pods and the artifact repository are.
        uid: The run's.
    """

    def __init__(self, document: Mapping[str, Any], folder: Path, uid: str = "u-1") -> None:
        self.pods: list[Pod] = []
        self.repository = folder / "repository"
        self._pods = folder / "pods"
        self._spec = document["spec"]
        self._templates = {each["name"]: each for each in self._spec["templates"]}
        self._globals = {"workflow.name": "run-1", "workflow.uid": uid}

    def run(self, **parameters: str) -> str:
        """Runs to the end, exit handler included; Succeeded or Failed."""
        values = {
            each["name"]: parameters.get(each["name"], each.get("value"))
            for each in self._spec["arguments"].get("parameters", [])
        }
        status = "Succeeded"
        try:
            self._execute(self._spec["entrypoint"], values, {})
        except PodFailedError:
            status = "Failed"
        self._globals |= {"workflow.status": status, "workflow.failures": "[]"}
        self._execute(self._spec["onExit"], {}, {})
        return status

    def ran(self) -> list[str]:
        """Names of the templates whose pods were started, in order."""
        return [pod.template["name"] for pod in self.pods]

    def _execute(
        self, name: str, values: Mapping[str, str | None], artifacts: Mapping[str, str]
    ) -> Outputs:
        template = json.loads(json.dumps(self._templates[name]))
        inputs = template.get("inputs", {})
        for parameter in inputs.get("parameters", []):
            given = values.get(parameter["name"])
            parameter["value"] = given if given is not None else parameter["value"]
        template = substitute(template, self._globals)
        variables = self._globals | {
            f"inputs.parameters.{each['name']}": each["value"]
            for each in template.get("inputs", {}).get("parameters", [])
        }
        template = substitute(template, variables)
        taken = {each["name"]: artifacts[each["name"]] for each in inputs.get("artifacts", [])}
        if "dag" in template:
            return self._run_dag(template, variables, taken)
        return self._run_pod(template, taken)

    def _run_dag(
        self, template: Mapping[str, Any], variables: dict[str, str], artifacts: dict[str, str]
    ) -> Outputs:
        tasks = {task["name"]: task for task in template["dag"]["tasks"]}
        waits = {
            name: re.findall(r"([\w-]+)\.Succeeded", task.get("depends", ""))
            for name, task in tasks.items()
        }
        known = {f"inputs.artifacts.{name}": key for name, key in artifacts.items()}
        succeeded: set[str] = set()
        for name in TopologicalSorter(waits).static_order():
            if not succeeded.issuperset(waits[name]):
                continue
            task = substitute(tasks[name], variables)
            if task.get("when", "true") == "false":
                continue
            assert task.get("when", "true") == "true"
            outputs = self._run_task(task, known)
            succeeded.add(name)
            for output, text in outputs.parameters.items():
                variables[f"tasks.{name}.outputs.parameters.{output}"] = text
            for output, key in outputs.artifacts.items():
                known[f"tasks.{name}.outputs.artifacts.{output}"] = key
        put = template.get("outputs", {})
        return Outputs(
            {
                each["name"]: substitute(each["valueFrom"]["parameter"], variables)
                for each in put.get("parameters", [])
            },
            {each["name"]: _key(each, known) for each in put.get("artifacts", [])},
        )

    def _run_task(self, task: Mapping[str, Any], known: Mapping[str, str]) -> Outputs:
        arguments = task.get("arguments", {})
        artifacts = {each["name"]: _key(each, known) for each in arguments.get("artifacts", [])}

        def values(item: Mapping[str, str]) -> dict[str, str]:
            parameters = substitute(arguments.get("parameters", []), item)
            assert "{{" not in json.dumps(parameters), parameters
            return {each["name"]: each["value"] for each in parameters}

        if "withParam" not in task and "withItems" not in task:
            return self._execute(task["template"], values({}), artifacts)
        items = json.loads(task["withParam"]) if "withParam" in task else task["withItems"]
        texts = [item if isinstance(item, str) else json.dumps(item) for item in items]
        results = [self._execute(task["template"], values({"item": t}), artifacts) for t in texts]
        names = results[0].parameters
        return Outputs({name: json.dumps([r.parameters[name] for r in results]) for name in names})

    def _run_pod(self, template: Mapping[str, Any], artifacts: Mapping[str, str]) -> Outputs:
        retry = template.get("retryStrategy", {"limit": "0", "expression": "false"})
        for attempt in range(int(retry["limit"]) + 1):
            folder = self._pods / f"{len(self.pods)}-{template['name']}"
            pod = self._start(template, artifacts, folder)
            if pod.exit_code == 0:
                return self._collect(template, folder)
            last = {"lastRetry.exitCode": str(pod.exit_code)}
            if attempt < int(retry["limit"]) and not evaluate(retry["expression"], last):
                break
        raise PodFailedError(f"{template['name']}: {pod.log}")

    def _start(
        self, template: Mapping[str, Any], artifacts: Mapping[str, str], folder: Path
    ) -> Pod:
        (folder / "outputs").mkdir(parents=True)
        for each in template.get("inputs", {}).get("artifacts", []):
            source, target = self.repository / artifacts[each["name"]], _inside(folder, each)
            target.parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        container = template["container"]
        argv = [
            text.replace("file:///inputs/", f"file://{folder}/inputs/").replace(
                "/outputs/", f"{folder}/outputs/"
            )
            for text in (*container["command"], *container.get("args", ()))
        ]
        assert argv[0] == "python"
        variables = {
            each["name"]: each["value"] for each in container.get("env", []) if "value" in each
        }
        done = subprocess.run(
            [sys.executable, *argv[1:]],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        self.pods.append(Pod(template, argv, done.returncode, done.stdout))
        return self.pods[-1]

    def _collect(self, template: Mapping[str, Any], folder: Path) -> Outputs:
        outputs = Outputs()
        put = template.get("outputs", {})
        for each in put.get("parameters", []):
            text = _inside(folder, each["valueFrom"]).read_text(encoding="utf-8")
            outputs.parameters[each["name"]] = text.removesuffix("\n")
        for each in put.get("artifacts", []):
            path = _inside(folder, each)
            if each.get("optional") and not path.exists():
                continue
            key = each.get("s3", {"key": f"run-1/{folder.name}/{path.name}"})["key"]
            target = self.repository / key
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            outputs.artifacts[each["name"]] = key
        return outputs


def _inside(folder: Path, each: Mapping[str, str]) -> Path:
    return folder / each["path"].removeprefix("/")


def _key(artifact: Mapping[str, Any], known: Mapping[str, str]) -> str:
    return artifact["s3"]["key"] if "s3" in artifact else known[artifact["from"][2:-2]]
