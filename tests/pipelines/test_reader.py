"""Reading compiled pipelines, and refusing what is not supported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.expressions import Constant as ConditionConstant
from pipelines.expressions import Operation, Parameter
from pipelines.ir import Constant, Container, Dag, DagInput, Loop, Retry, TaskOutput
from pipelines.placeholders import EXECUTOR_INPUT
from pipelines.reader import load_pipeline, read_pipeline
from quantlib.errors import InvalidInputError

ARTIFACT = {"artifactType": {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}}
STRING = {"parameterType": "STRING"}
DOCUMENT: dict[str, Any] = {
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.0",
    "pipelineInfo": {"name": "toy", "description": "A toy."},
    "deploymentSpec": {
        "executors": {
            "exec-make": {
                "container": {
                    "image": "toy:1",
                    "command": ["python", "-c", "pass"],
                    "args": ["--input={{$}}"],
                    "env": [{"name": "A", "value": "b"}],
                }
            },
        }
    },
    "components": {
        "comp-make": {
            "executorLabel": "exec-make",
            "inputDefinitions": {
                "parameters": {
                    "x": STRING,
                    "y": {"parameterType": "NUMBER_DOUBLE", "isOptional": True, "defaultValue": 1},
                }
            },
            "outputDefinitions": {"artifacts": {"a": ARTIFACT}, "parameters": {"v": STRING}},
        },
        "comp-loop": {
            "dag": {
                "tasks": {
                    "make": {
                        "componentRef": {"name": "comp-make"},
                        "inputs": {
                            "parameters": {"x": {"componentInputParameter": "item"}},
                        },
                    }
                },
                "outputs": {
                    "artifacts": {
                        "all": {
                            "artifactSelectors": [
                                {"producerSubtask": "make", "outputArtifactKey": "a"}
                            ]
                        }
                    },
                    "parameters": {
                        "values": {
                            "valueFromParameter": {
                                "producerSubtask": "make",
                                "outputParameterKey": "v",
                            }
                        }
                    },
                },
            },
            "inputDefinitions": {"parameters": {"item": STRING, "when": STRING}},
            "outputDefinitions": {
                "artifacts": {"all": {**ARTIFACT, "isArtifactList": True}},
                "parameters": {"values": {"parameterType": "LIST"}},
            },
        },
    },
    "root": {
        "dag": {
            "tasks": {
                "first": {
                    "componentRef": {"name": "comp-make"},
                    "cachingOptions": {"enableCache": True},
                    "inputs": {"parameters": {"x": {"componentInputParameter": "p"}}},
                    "retryPolicy": {
                        "maxRetryCount": 2,
                        "backoffDuration": "5s",
                        "backoffFactor": 2.0,
                        "backoffMaxDuration": "3600s",
                    },
                    "taskInfo": {"name": "first"},
                },
                "loop": {
                    "componentRef": {"name": "comp-loop"},
                    "dependentTasks": [],
                    "inputs": {
                        "parameters": {
                            "when": {
                                "taskOutputParameter": {
                                    "producerTask": "first",
                                    "outputParameterKey": "v",
                                }
                            }
                        }
                    },
                    "triggerPolicy": {"condition": "inputs.parameter_values['when'] == 'go'"},
                    "parameterIterator": {"itemInput": "item", "items": {"raw": '["1", "2"]'}},
                    "iteratorPolicy": {"parallelismLimit": 3},
                },
            }
        },
        "inputDefinitions": {"parameters": {"p": {**STRING, "description": "A parameter."}}},
    },
}


def test_reads_every_part() -> None:
    pipeline = read_pipeline(yaml.safe_dump(DOCUMENT))
    assert (pipeline.name, pipeline.steps) == ("toy", ("first", "make"))
    make = pipeline.components["comp-make"]
    assert make.implementation == Container(
        "toy:1",
        (("python",), ("-c",), ("pass",), ("--input=", EXECUTOR_INPUT)),
        {"A": "b"},
    )
    assert make.inputs.parameters["y"].default == 1
    assert make.outputs.artifacts["a"].schema_title == "system.Artifact"
    dag = pipeline.root.implementation
    assert isinstance(dag, Dag)
    first, loop = dag.tasks["first"], dag.tasks["loop"]
    assert first.parameters == {"x": DagInput("p")}
    assert first.retry == Retry(count=2, delay=5.0, factor=2.0, limit=3600.0)
    assert loop.dependencies == ("first",), "a task whose output is taken is depended on"
    assert loop.parameters == {"when": TaskOutput("first", "v")}
    assert loop.loop == Loop(("1", "2"), "item", 3)
    assert loop.retry == Retry()
    assert loop.condition == Operation("==", Parameter("when"), ConditionConstant("go"))
    body = pipeline.components["comp-loop"].implementation
    assert isinstance(body, Dag)
    assert body.artifacts == {"all": (TaskOutput("make", "a"),)}
    assert body.parameters == {"values": (TaskOutput("make", "v"),)}


def fresh() -> dict[str, Any]:
    """A copy of the document whose parts are all its own."""
    return json.loads(json.dumps(DOCUMENT))


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        node = document
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is None:
            del node[last]
        else:
            node[last] = value

    return change


FIRST = "root/dag/tasks/first"
LOOP = "root/dag/tasks/loop"
MAKE = "deploymentSpec/executors/exec-make/container"
X = f"{FIRST}/inputs/parameters/x"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # unknown fields, at every level
        ("novelty", 1, "toy.yaml: novelty: is not supported"),
        ("pipelineInfo/novelty", 1, "pipelineInfo.novelty: is not supported"),
        ("components/comp-make/novelty", 1, "components.comp-make.novelty: is not supported"),
        ("root/dag/novelty", 1, "root.dag.novelty: is not supported"),
        (f"{FIRST}/novelty", 1, "root.dag.tasks.first.novelty: is not supported"),
        (f"{MAKE}/lifecycle", {}, "executors.exec-make.container.lifecycle: is not supported"),
        (f"{MAKE}/resources", {"gpus": 1}, "container.resources.gpus: is not supported"),
        ("deploymentSpec/executors/e/importer", {}, "executors.e: runs no container"),
        (f"{FIRST}/cachingOptions/cacheKey", "k", "cachingOptions.cacheKey: is not supported"),
        (f"{LOOP}/artifactIterator", {}, "tasks.loop.artifactIterator: is not supported"),
        (
            f"{FIRST}/triggerPolicy/strategy",
            "ALL_UPSTREAM_TASKS_COMPLETED",
            "tasks.first.triggerPolicy.strategy: is not supported",
        ),
        (X, {"taskFinalStatus": {}}, "x: gives no value in a way that is supported"),
        (
            f"{X}/parameterExpressionSelector",
            "parseJson(string_value)['a']",
            "inputs.parameters.x.parameterExpressionSelector: is not supported",
        ),
        (X, {"runtimeValue": {"constant": "a {{$.pipeline_job_name}}"}}, "a placeholder"),
        (
            "components/comp-make/inputDefinitions/parameters/x/parameterType",
            "TASK_FINAL_STATUS",
            "parameters.x: has type TASK_FINAL_STATUS",
        ),
        # placeholders
        (f"{MAKE}/args", ["{{$.outputs.output_file}}"], "container.argv: unknown placeholder"),
        (f"{MAKE}/args", ["{{$.inputs.parameters['z']}}"], "names inputs.parameters['z']"),
        (f"{MAKE}/command", ["{{$.inputs.parameters['x']}}"], "needs a command without"),
        (f"{MAKE}/command", [], "needs a command"),
        # wrong types
        ("schemaVersion", "2.2.0", "has schema 2.2.0, not 2.1.0"),
        ("components", [], "components: has the wrong type"),
        (f"{FIRST}/dependentTasks", [1], "dependentTasks: is no list of strings"),
        (f"{FIRST}/retryPolicy/maxRetryCount", True, "maxRetryCount: has the wrong type"),
        (f"{FIRST}/retryPolicy/backoffDuration", "soon", "backoffDuration: is no duration"),
        (f"{LOOP}/parameterIterator/items", {"raw": "1"}, "items.raw: is no JSON list"),
        (f"{LOOP}/triggerPolicy/condition", "true ==", "triggerPolicy.condition: 'true =='"),
        # references
        (f"{FIRST}/componentRef/name", "comp-x", "tasks.first: unknown component comp-x"),
        ("components/comp-make/executorLabel", "exec-x", "unknown executor exec-x"),
        (f"{X}/componentInputParameter", "q", "tasks.first: the DAG has no input q"),
        (X, None, "tasks.first: input x is missing"),
        (f"{FIRST}/inputs/parameters/z", {"componentInputParameter": "p"}, "takes no input z"),
        (f"{FIRST}/dependentTasks", ["none"], "depends on unknown tasks: none"),
        (f"{FIRST}/dependentTasks", ["loop"], "root.dag: tasks wait for each other"),
        (
            f"{LOOP}/inputs/parameters/when/taskOutputParameter/outputParameterKey",
            "w",
            "tasks.loop: first has no output w",
        ),
        (f"{LOOP}/triggerPolicy/condition", "inputs.parameter_values['y']", "inputs: y"),
        (f"{LOOP}/parameterIterator/items", {"inputParameter": "y"}, "unknown inputs: y"),
        (f"{LOOP}/retryPolicy", {"maxRetryCount": 1}, "retries of a whole DAG"),
        ("components/comp-loop/outputDefinitions/artifacts", {}, "outputs: all is no output"),
        # names of folders
        (
            "root/dag/tasks/make",
            {
                "componentRef": {"name": "comp-make"},
                "inputs": {"parameters": {"x": {"componentInputParameter": "p"}}},
            },
            "several DAGs have a task make",
        ),
    ],
)
def test_refuses_with_the_path(path: str, value: Any, message: str) -> None:
    document = fresh()
    put(path, value)(document)
    with pytest.raises(InvalidInputError) as caught:
        read_pipeline(yaml.safe_dump(document), "toy.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("toy.yaml: ")


@pytest.mark.parametrize("flag", ["isOptional", "isArtifactList"])
def test_refuses_placeholders_that_may_not_be_substituted(flag: str) -> None:
    document = fresh()
    inputs = document["components"]["comp-make"]["inputDefinitions"]
    inputs["artifacts"] = {"a": {**ARTIFACT, flag: True}}
    put(f"{MAKE}/args", ["{{$.inputs.artifacts['a'].path}}"])(document)
    with pytest.raises(InvalidInputError, match=r"names inputs\.artifacts\['a'\]"):
        read_pipeline(yaml.safe_dump(document))


def test_refuses_nested_loops() -> None:
    document = fresh()
    document["components"]["comp-outer"] = {
        "dag": {
            "tasks": {
                "inner": {
                    "componentRef": {"name": "comp-loop"},
                    "inputs": {"parameters": {"when": {"componentInputParameter": "item"}}},
                    "parameterIterator": {"itemInput": "item", "items": {"raw": "[]"}},
                }
            }
        },
        "inputDefinitions": {"parameters": {"item": STRING}},
    }
    document["root"]["dag"]["tasks"]["outer"] = {
        "componentRef": {"name": "comp-outer"},
        "parameterIterator": {"itemInput": "item", "items": {"raw": "[]"}},
    }
    with pytest.raises(InvalidInputError, match="loop inner in loop outer: nested loops"):
        read_pipeline(yaml.safe_dump(document))


def test_constants_keep_their_type() -> None:
    document = fresh()
    put(X, {"runtimeValue": {"constant": 2.5}})(document)
    dag = read_pipeline(yaml.safe_dump(document)).root.implementation
    assert isinstance(dag, Dag)
    assert dag.tasks["first"].parameters == {"x": Constant(2.5)}


PLATFORM = """
platforms:
  kubernetes:
    deploymentSpec:
      executors:
        {}: """


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds 0 documents"),
        ("[1, 2]", "is no mapping"),
        ("a: b: c", "is no YAML"),
        (f"{yaml.safe_dump(DOCUMENT)}---\n{{}}\n---\n{{}}\n", "holds 3 documents"),
        (f"{yaml.safe_dump(DOCUMENT)}---\nplatforms: {{local: {{}}}}\n", "platforms.local"),
        (f"{yaml.safe_dump(DOCUMENT)}---\n" + PLATFORM.format("exec-x") + "{}\n", "unknown exec-x"),
        (
            f"{yaml.safe_dump(DOCUMENT)}---\n" + PLATFORM.format("exec-make") + "{novelty: 1}\n",
            "executors.exec-make.novelty: is not supported",
        ),
    ],
)
def test_refuses_what_is_no_pipeline(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_pipeline(text)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.yaml: cannot be read: No such file"):
        load_pipeline(tmp_path / "none.yaml")
