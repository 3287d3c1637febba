"""How many CPUs a process may use, a container's limit included, and what they can do."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


def available_cpus(cgroups: Path = _CGROUPS) -> int:
    """CPUs that this process may keep busy, at least 1.

    A container's limit is a quota of time, which libraries do not see: they start a thread for each
    of the node's CPUs, and the threads then wait for one another. (Linux,
    Documentation/admin-guide/cgroup-v2.rst: cpu.max; cgroup-v1/cpu: cfs_quota_us.)

    Args:
        cgroups: Where the kernel shows the container's limits.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _quota(cgroups)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_flags(info: Path = _CPUINFO) -> frozenset[str]:
    """What the processor can do, as Linux names it; nothing where that is not known.

    Args:
        info: Where the kernel lists it.
    """
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def has_avx512() -> bool:
    """Whether the processor has AVX-512."""
    return "avx512f" in cpu_flags()


def _quota(cgroups: Path) -> float | None:
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((cgroups / file).read_text() for file in files).split()
            limit, period = (float(word) for word in words)
        except (OSError, ValueError):  # none such, or "max"
            continue
        return limit / period if limit > 0 and period > 0 else None
    return None
