"""What becomes of the steps of a run on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipelines.local.calls import Values


class State(StrEnum):
    """What became of a step."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"
    NOT_RUN = "not run"


@dataclass(eq=False)
class StepRun:
    """One run of a step.

    Attributes:
        step: Name of the step.
        index: Which of several it is; None where it runs once.
        name: Name of the step with what it runs for: ``quantize[0:8]``.
        folder: Where its log and its outputs are.
        started: By the clock of ``time.monotonic``.
        seconds: How long it ran, all attempts and the waits between them together.
        exit_code: Of the last attempt; None where the step was never started.
        error: Why it failed.
    """

    step: str
    index: int | None
    name: str
    folder: Path
    state: State = State.WAITING
    started: float | None = None
    seconds: float = 0.0
    attempts: int = 0
    exit_code: int | None = None
    error: str = ""
    outputs: Values = field(default_factory=Values)

    @property
    def outcome(self) -> str:
        """What became of it, in words: a step whose work was in the store is ``reused``."""
        artifacts = [one for found in self.outputs.artifacts.values() for one in found]
        reused = any(one.metadata.get("reused") for one in artifacts)
        return "reused" if reused and self.state is State.SUCCEEDED else self.state.value

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return {
            "state": self.state.value,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
            "exit_code": self.exit_code,
            "error": self.error,
            "log": str(self.folder / "log.txt"),
            "outputs": {
                "parameters": dict(self.outputs.parameters),
                "artifacts": {
                    name: [
                        {
                            "path": str(artifact.path),
                            "type": artifact.kind,
                            "metadata": dict(artifact.metadata),
                        }
                        for artifact in artifacts
                    ]
                    for name, artifacts in self.outputs.artifacts.items()
                },
            },
        }
