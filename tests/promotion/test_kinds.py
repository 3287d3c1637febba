"""What a document says is served, and what is not for us to change."""

from typing import Any

import pytest
import yaml
from promotion.services import BY_HAND, SERVICES

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import KINDS


def deployment(**container: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(SERVICES["Deployment"])
    document["spec"]["template"]["spec"]["containers"][1] |= container
    return document


@pytest.mark.parametrize(
    ("command", "args"),
    [
        (["vllm", "serve"], [BY_HAND, "--max-model-len=512"]),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], ["--model", BY_HAND]),
        (["/opt/start.sh"], [f"--model={BY_HAND}"]),
    ],
)
def test_a_command_that_starts_vllm(command: list[str], args: list[str]) -> None:
    assert KINDS["Deployment"].state(deployment(command=command, args=args)).uri == BY_HAND


@pytest.mark.parametrize(
    "command",
    [
        ["vllm", "serve", BY_HAND],
        ["python3", "-m", "vllm.entrypoints.openai.api_server", f"--model={BY_HAND}"],
        ["sh", "-c", f"exec vllm serve {BY_HAND}"],
    ],
)
def test_a_model_in_the_command_is_out_of_reach(command: list[str]) -> None:
    document = deployment(command=command)
    with pytest.raises(InvalidInputError, match="move the model and the options to args"):
        KINDS["Deployment"].state(document)


def test_a_variable_that_is_no_list_of_words() -> None:
    document = yaml.safe_load(SERVICES["LLMInferenceService"])
    document["spec"]["template"]["containers"][0]["env"][1]["value"] = "--served-model-name 'tiny"
    with pytest.raises(InvalidInputError, match=r"is not understood: .*No closing"):
        KINDS["LLMInferenceService"].state(document)


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        (
            "InferenceService",
            {"model": {"storage": {"key": "k", "path": "p"}}},
            "model.storage says",
        ),
        ("InferenceService", {"model": {"storageUris": [{"uri": "u"}]}}, "storageUris says"),
        ("InferenceService", {"storageUris": [{"uri": "u"}]}, "storageUris says"),
        ("InferenceService", {"workerSpec": {}}, "served by several pods together"),
        ("LLMInferenceService", {"worker": {}}, "served by several pods together"),
        ("LLMInferenceService", {"prefill": {}}, "served by several pods together"),
    ],
)
def test_what_promotion_could_not_change_is_refused(
    kind: str, spec: dict[str, Any], said: str
) -> None:
    document = yaml.safe_load(SERVICES[kind])
    fields = document["spec"]["predictor"] if kind == "InferenceService" else document["spec"]
    model = fields["model"] | spec.get("model", {})
    fields |= spec | {"model": model}
    with pytest.raises(InvalidInputError, match=said):
        KINDS[kind].state(document)
