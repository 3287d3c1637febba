"""The steps of a promotion, and what each makes of a service."""

from copy import deepcopy
from typing import Any

import pytest
import yaml
from promotion.services import SERVICES

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import KINDS
from quantlib.promotion.rollout import (
    Change,
    in_cluster_name,
    require_canary,
    require_route,
    restoring,
    steps_of,
    weighed,
    workload_name,
)
from quantlib.promotion.state import State

WANTED = State("s3://models/new/", ("--dtype", "bfloat16"), {"quantlib.io/digest": "sha256:1"})


def service(mode: str = "Standard", kind: str = "InferenceService", **predictor: Any) -> Any:
    document = yaml.safe_load(SERVICES[kind])
    document["status"] = {"deploymentMode": mode}
    if kind == "InferenceService":
        document["spec"]["predictor"] |= predictor
    return document


def serve(kind: str = "InferenceService") -> Change:
    return lambda document: KINDS[kind].changed(document, WANTED)


def scale(document: Any) -> tuple[Any, Any, Any]:
    predictor = document["spec"]["predictor"]
    canary = document["spec"].get("canary", [{}])[0].get("predictor", {})
    return predictor.get("minReplicas"), predictor.get("maxReplicas"), canary.get("minReplicas")


@pytest.mark.parametrize(
    ("least", "most", "percent", "scales"),
    [
        # KServe takes the canary's pods from the others' minReplicas.
        (4, None, 0, (5, None, 1)),
        (4, None, 10, (5, None, 1)),
        (4, None, 50, (6, None, 2)),
        (4, 5, 50, (6, 6, 2)),
        (4, 9, 50, (6, 9, 2)),
        (1, None, 50, (1, None, 1)),
        (None, 3, 0, (None, 3, 1)),
    ],
)
def test_the_pods_of_a_canary_are_taken_from_nobody(
    least: int | None, most: int | None, percent: int, scales: tuple[Any, Any, Any]
) -> None:
    given = {"minReplicas": least, "maxReplicas": most}
    document = service(scaleTarget=3)
    document["spec"]["predictor"].pop("minReplicas")
    document["spec"]["predictor"] |= {k: v for k, v in given.items() if v is not None}
    before = deepcopy(document)
    steps = steps_of(before, serve(), (percent,), dark=percent == 0, split=True)
    asked = steps[0].change(document)
    assert scale(asked) == scales
    (canary,) = asked["spec"]["canary"]
    assert canary["trafficPercent"] == percent
    assert canary["predictor"].keys() == {"name", "minReplicas", "model"}
    assert canary["predictor"]["model"]["storageUri"] == WANTED.uri
    assert asked["spec"]["predictor"]["model"] == before["spec"]["predictor"]["model"]
    assert asked["metadata"] == before["metadata"], "annotations would start the stable pods anew"
    assert document == before, "what is given is left alone"
    for change in (steps[-1].change, restoring(KINDS["InferenceService"], before)):
        after = change(asked)
        assert "canary" not in after["spec"]
        assert scale(after) == (least, most, None)
    assert restoring(KINDS["InferenceService"], before)(asked)["spec"] == before["spec"]


def test_which_steps_there_are() -> None:
    def names(*percents: int, **options: bool) -> list[str]:
        return [step.name for step in steps_of(service(), serve(), percents, **options)]

    assert names(dark=False, split=False) == ["all traffic"]
    assert names(dark=True, split=False) == ["dark launch", "all traffic"]
    assert names(10, 50, dark=True, split=False) == ["dark launch", "all traffic"]
    shares = ["dark launch", "10 % of traffic", "50 % of traffic", "all traffic"]
    assert names(0, 10, 50, dark=True, split=True) == shares
    knative = steps_of(service("Knative"), serve(), (0, 10), dark=False, split=False)
    assert [step.name for step in knative] == ["0 % of traffic", "10 % of traffic", "all traffic"]
    documents = [step.change(service("Knative")) for step in knative]
    percents = [each["spec"]["predictor"].get("canaryTrafficPercent") for each in documents]
    assert percents == [0, 10, None]


def test_going_back_brings_back_what_was_lost_and_keeps_what_others_set() -> None:
    before = service(serviceAccountName="reader", minReplicas=2)
    now = serve()(before)
    del now["spec"]["predictor"]["serviceAccountName"]
    now["spec"]["predictor"]["minReplicas"] = 5
    now["spec"]["predictor"]["storageContainerName"] = "quantlib-verified"
    back = restoring(KINDS["InferenceService"], before)(now)
    predictor = deepcopy(before["spec"]["predictor"]) | {"minReplicas": 5}
    assert back["spec"]["predictor"] == predictor
    assert not [name for name in back["metadata"]["annotations"] if "quantlib" in name]


@pytest.mark.parametrize("kind", ["Deployment", "LLMInferenceService"])
def test_other_kinds_go_over_and_back(kind: str) -> None:
    before = service(kind=kind)
    (step,) = steps_of(before, serve(kind), (), dark=False, split=False)
    now = step.change(before)
    assert KINDS[kind].state(now).uri == WANTED.uri
    assert restoring(KINDS[kind], before)(now)["spec"] == before["spec"]


def test_a_deployment_has_no_canary() -> None:
    require_canary(service(kind="LLMInferenceService"))
    with pytest.raises(InvalidInputError, match="a Deployment has no canary"):
        require_canary(service(kind="Deployment"))


def test_the_deployments_that_kserve_makes() -> None:
    assert workload_name(service()) == "tiny-predictor"
    assert workload_name(service(), canary=True) == "tiny-canary-predictor"
    assert workload_name(service(name="blue")) == "tiny-blue-predictor"
    assert workload_name(service("Knative")) is None
    llm = service(kind="LLMInferenceService")
    assert workload_name(llm) == "tiny-kserve"
    assert workload_name(llm, canary=True) == "tiny-canary-kserve"
    assert in_cluster_name(llm, canary=True) == "tiny-canary-kserve-workload-svc"
    assert in_cluster_name(service()) == "tiny-predictor"


def route(*names: str, **metadata: Any) -> Any:
    rules = [{"backendRefs": [{"name": name, "port": 80}]} for name in names]
    return {"metadata": {"name": "tiny"} | metadata, "spec": {"hostnames": ["x"], "rules": rules}}


def test_a_route_gives_shares() -> None:
    before = route("tiny-predictor", "other")
    shared = weighed(before, service(), 50)(weighed(before, service(), 10)(before))
    assert shared["spec"]["hostnames"] == ["x"]
    assert shared["spec"]["rules"] == [
        {
            "backendRefs": [
                {"name": "tiny-predictor", "port": 80, "weight": 50},
                {"name": "tiny-canary-predictor", "port": 80, "weight": 50},
            ]
        },
        before["spec"]["rules"][1],
    ]


def test_a_route_that_cannot() -> None:
    require_route(route("tiny-predictor"), service(), can_share=True)
    with pytest.raises(InvalidInputError, match="give --canary too"):
        require_route(route("tiny-predictor"), service(), can_share=False)
    with pytest.raises(InvalidInputError, match="leads to the Service tiny-predictor"):
        require_route(route("other"), service(), can_share=True)
    owner = {"kind": "InferenceService", "name": "tiny", "controller": True}
    with pytest.raises(InvalidInputError, match="belongs to InferenceService tiny"):
        require_route(route("tiny-predictor", ownerReferences=[owner]), service(), can_share=True)
