"""What ranges are computed on, in the numbers that estimates go by."""

from __future__ import annotations

from dataclasses import dataclass

from quantlib.errors import InvalidInputError, did_you_mean
from quantlib.runtime.cpus import cpu_flags

GIB = 1 << 30
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True)
class Hardware:
    """A device.

    Attributes:
        memory: Bytes of its own memory; 0 for a CPU, which uses the host's.
        products: Floating point operations a second in a model's matrix products.
        hessians: The same in the products of Hessians, which are summed in float32.
        bandwidth: Bytes a second from its memory.
        column_seconds: What rounding one input channel of a linear costs besides: on a GPU, the
            launches of its kernels, on a CPU the calls of its operators.
        capability: A GPU's compute capability, as 90; 0 for a CPU.
    """

    name: str
    memory: int
    products: float
    hessians: float
    bandwidth: float
    column_seconds: float
    capability: int = 0

    @property
    def is_gpu(self) -> bool:
        """Whether it has memory of its own."""
        return self.memory > 0


# Makers' peak rates (dense bf16 with tensor cores; float32 without; memory), times the shares that
# such kernels commonly reach. No run was timed on them: the ratios between range counts are sound,
# the absolute times are rough.
_PRODUCTS_SHARE, _HESSIANS_SHARE, _BANDWIDTH_SHARE = 0.4, 0.6, 0.7
_LAUNCHES = 5 * 6e-6


def _gpu(
    name: str, gib: float, bf16: float, float32: float, terabytes: float, capability: int
) -> Hardware:
    return Hardware(
        name,
        int(gib * GIB),
        bf16 * 1e12 * _PRODUCTS_SHARE,
        float32 * 1e12 * _HESSIANS_SHARE,
        terabytes * 1e12 * _BANDWIDTH_SHARE,
        _LAUNCHES,
        capability,
    )


_ALL = (
    _gpu("b200-180g", 180, 2250, 75, 8.0, 100),
    _gpu("h200-141g", 141, 989, 67, 4.8, 90),
    _gpu("h100-80g", 80, 989, 67, 3.35, 90),
    _gpu("a100-80g", 80, 312, 19.5, 2.0, 80),
    _gpu("a100-40g", 40, 312, 19.5, 1.55, 80),
    _gpu("l40s-48g", 48, 362, 91.6, 0.86, 89),
    _gpu("a10g-24g", 24, 125, 31, 0.6, 86),
    _gpu("l4-24g", 24, 121, 30, 0.3, 89),
    # One core with AVX-512 and bf16 instructions: see docs/planning.md for how it was measured.
    Hardware("cpu", 0, 1.5e11, 1.5e11, 8e9, 1.5e-4),
)
HARDWARE = {hardware.name: hardware for hardware in _ALL}


def find_hardware(name: str) -> Hardware:
    """The hardware of a name.

    Raises:
        InvalidInputError: The name is unknown.
    """
    try:
        return HARDWARE[name]
    except KeyError:
        raise InvalidInputError.one(
            f"gpu {name!r}",
            f"is unknown; known: {', '.join(HARDWARE)}",
            did_you_mean(name, HARDWARE),
        ) from None


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU multiplies bfloat16, found out without torch."""
    return not _BF16_FLAGS.isdisjoint(cpu_flags())
