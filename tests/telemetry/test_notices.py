"""What a webhook is told of the end of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from listener import Listener, listening

from quantlib.telemetry.notices import Notice, notify

REFUSED = Notice("run-1", "hf://org/name@main", "gate", 3, "refused: kl_mean is 0.31\n")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    with listening() as listener:
        monkeypatch.setenv("QUANTLIB_NOTIFY_URL", f"{listener.url}/services/secret")
        yield listener


def test_what_is_posted(hook: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTLIB_RUN_LINK", "https://kubeflow.example/#/runs/details/{run}")
    notify(REFUSED)
    link = "https://kubeflow.example/#/runs/details/run-1"
    assert hook.posted == [
        {
            "text": "Quantization of hf://org/name@main refused at step gate: "
            f"refused: kl_mean is 0.31\n{link}",
            "run": "run-1",
            "outcome": "refused",
            "model": "hf://org/name@main",
            "step": "gate",
            "exit_code": 3,
            "reason": "refused: kl_mean is 0.31",
            "link": link,
        }
    ]


@pytest.mark.parametrize(
    ("exit_code", "outcome"),
    [
        (1, "failed"),
        (2, "failed"),
        (3, "refused"),
        (4, "refused"),
        (5, "refused"),
        (None, "failed"),
    ],
)
def test_outcomes(hook: Listener, exit_code: int | None, outcome: str) -> None:
    notify(Notice("run-1", "", "plan", exit_code, "x"))
    (posted,) = hook.posted
    assert posted["outcome"] == outcome
    assert posted["text"].endswith("run run-1")


def test_that_a_run_passed_is_told_if_asked(
    hook: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = Notice("run-1", "name", "publish", 0, "s3://bucket/models/name/ab")
    notify(passed)
    assert hook.posted == []
    monkeypatch.setenv("QUANTLIB_NOTIFY_PASSED", "yes")
    notify(passed)
    assert hook.posted[0]["text"].startswith(
        "Quantization of name passed: s3://bucket/models/name/ab"
    )


def test_a_hook_that_does_not_take_it_is_told_in_a_line_without_its_secret(
    hook: Listener, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.status = 500
    notify(REFUSED)
    assert capsys.readouterr().err == (
        "warning: QUANTLIB_NOTIFY_URL: 127.0.0.1 answers 500; nobody was told how the run ended\n"
    )
    monkeypatch.setenv("QUANTLIB_NOTIFY_URL", "http://127.0.0.1:9/services/secret")
    notify(REFUSED)
    (line,) = capsys.readouterr().err.splitlines()
    assert "127.0.0.1 cannot be reached" in line and "secret" not in line


def test_nobody_is_told_where_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTLIB_NOTIFY_URL", raising=False)
    notify(REFUSED)
