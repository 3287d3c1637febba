"""Which settings are refused before any work, all of them at once."""

from __future__ import annotations

import pytest

from quantlib.telemetry.settings import environment_problems


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("QUANTLIB_PUSHGATEWAY", "gateway:9091", "is no address of a server"),
        ("QUANTLIB_PUSHGATEWAY", "http://gateway:port", "is no address"),
        ("QUANTLIB_PUSHGATEWAY", "http://", "is no address of a server"),
        ("QUANTLIB_PUSHGATEWAY", "http://me:secret@gateway", "holds a user or a password"),
        ("QUANTLIB_NOTIFY_URL", "hooks.slack.com/services/secret", "is no address of a server"),
        ("QUANTLIB_RUN_LINK", "https://kubeflow.example/runs", "write {run} there"),
        ("QUANTLIB_NOTIFY_PASSED", "1", "is '1', neither yes nor no"),
        ("QUANTLIB_LOG", "xml", "is 'xml', neither plain nor json"),
    ],
)
def test_what_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    (problem,) = environment_problems()
    assert problem.where == variable
    assert said in str(problem) and "secret" not in str(problem)


def test_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUANTLIB_PUSHGATEWAY", "QUANTLIB_NOTIFY_URL", "QUANTLIB_LOG"):
        monkeypatch.setenv(name, "x")
    assert len(environment_problems()) == 3


def test_what_makes_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTLIB_PUSHGATEWAY", "http://pushgateway.monitoring:9091")
    monkeypatch.setenv("QUANTLIB_NOTIFY_URL", "https://hooks.slack.com/services/T/B/x")
    monkeypatch.setenv("QUANTLIB_RUN_LINK", "https://kubeflow.example/#/runs/details/{run}")
    monkeypatch.setenv("QUANTLIB_NOTIFY_PASSED", "yes")
    assert environment_problems() == []
