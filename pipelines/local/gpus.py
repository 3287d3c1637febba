"""The GPUs of this machine, each lent to one step at a time."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from pipelines.local.calls import Values
from quantlib.errors import StepError

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
_SECONDS_FOR_THE_DRIVER = 30


def find_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that steps may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    Args:
        environment: Where that variable limits them.
    """
    if (visible := environment.get(VISIBLE_VARIABLE)) is not None:
        names = [name.strip() for name in visible.split(",")]
        return tuple(name for name in names if name and name != "-1")
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_SECONDS_FOR_THE_DRIVER
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(found.stdout.split())


def wanted(inputs: Values) -> int:
    """How many GPUs a step computes on, where there are some.

    One that computes says on what (``device``); where the plan gives it GPUs, how many (``gpus``,
    with 0 for a plan without any).
    """
    if inputs.parameters.get("device") not in ("auto", "cuda"):
        return 0
    return max(1, int(inputs.parameters.get("gpus", 1)))


class Gpus:
    """Lends GPUs; steps wait for their turn in the order in which they ask.

    Attributes:
        names: All of them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._free = list(names)
        self._turn = asyncio.Lock()
        self._returned = asyncio.Condition()

    @asynccontextmanager
    async def lend(self, step: str, count: int) -> AsyncIterator[tuple[str, ...]]:
        """Lends so many; none on a machine without any.

        Args:
            step: Who asks.
            count: How many.

        Raises:
            StepError: There are never so many.
        """
        if not self.names or not count:
            yield ()
            return
        if count > len(self.names):
            raise StepError(
                step,
                f"asks for {count} GPUs, and this machine has {len(self.names)}; plan for GPUs "
                "with more memory (--gpu), or ask for fewer in serving.tensor_parallel_size",
            )
        async with self._turn, self._returned:
            await self._returned.wait_for(lambda: len(self._free) >= count)
            lent = tuple(self._free[:count])
            del self._free[:count]
        try:
            yield lent
        finally:
            self._free = [name for name in self.names if name in {*self._free, *lent}]
            async with self._returned:
                self._returned.notify_all()
