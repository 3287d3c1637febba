"""What a cluster is like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.profiles import Profile, load_profile
from quantlib.errors import InvalidInputError


@pytest.mark.parametrize(
    ("profile", "where"),
    [
        ({"gpus": 1}, "gpus"),
        ({"scratch": {"size": "many"}}, "scratch.size"),
        ({"parallel": 65}, "parallel"),
        ({"retries": {"factor": 1.5}}, "retries.factor"),
        ({"steps": {"train": {}}}, "steps.train"),
        ({"log": "xml"}, "log"),
        ({"pushgateway": "gateway:9091"}, "pushgateway"),
        ({"run_link": "kubeflow/{run}"}, "run_link: is no address of a server"),
        ({"run_link": "https://kubeflow.example"}, "run_link: does not say where the run's id"),
        ({"steps": {"fetch": {"memory": "8 GB"}}}, "steps.fetch.memory"),
        ({"steps": {"merge": {"cpu": None}}}, "steps.merge.cpu"),
    ],
)
def test_faults_of_a_profile_are_named(tmp_path: Path, profile: Any, where: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(profile))
    with pytest.raises(InvalidInputError) as caught:
        load_profile(str(file))
    assert str(caught.value.problems[0]).startswith(f"{file}: {where}")


def test_profiles_that_ship() -> None:
    assert load_profile("gpu").accelerator is not None
    assert load_profile("local").accelerator is None
    assert Profile().step("gate").memory == "1Gi"
    assert load_profile("local").step("gate").memory == "512Mi"
