"""How a checkpoint was quantized, as typed data: the algorithm, and how its numbers lie."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantlib.report.part import Part
from quantlib.schemes import ACTIVATIONS, Activations, AskedWeights, ScaleType, WeightType, name_of


class Method(Part):
    """The algorithm and the representation, with every default resolved."""

    quantizer: str
    bits: int
    group_size: Annotated[int, Field(description="-1: one scale per output channel.")]
    symmetric: bool
    activations: Activations
    weight_type: WeightType
    scale: ScaleType = "model"
    block_rows: int = 1
    schemes: Annotated[
        tuple[str, ...],
        Field(
            description="What rules of the recipe say of linears; bits and the like are those of "
            "the linears that no rule names."
        ),
    ] = ()
    format: str
    kv_cache: Annotated[
        str, Field(description="What keys and values are kept in; empty for the model's dtype.")
    ] = ""
    group_size_reason: Annotated[
        str, Field(description="Why it is that, where it is what auto chooses; else empty.")
    ] = ""
    outlier_suppression: str | None
    alpha: Annotated[
        tuple[float | None, ...] | None,
        Field(
            description="Strength of the outlier suppression in each block; null for a block that "
            "is left alone. None without suppression, or where it has no strength."
        ),
    ] = None

    @property
    def scheme(self) -> str:
        """Its usual name, such as ``W4A16`` or ``NVFP4A16``; of several, all of them."""
        if self.schemes:
            return " + ".join(self.schemes)
        weights = AskedWeights(
            type=self.weight_type,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            scale=self.scale,
            block_rows=self.block_rows,
        )
        return name_of(weights, self.activations)

    @property
    def alphas(self) -> dict[float, int]:
        """How many blocks were suppressed with each strength, the least strength first."""
        used = [alpha for alpha in self.alpha or () if alpha is not None]
        return {alpha: used.count(alpha) for alpha in sorted(set(used))}

    @property
    def details(self) -> str:
        """What its name does not say of a scheme, in words."""
        if self.schemes:
            return "by rules of the recipe"
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        if self.block_rows == -1:
            return f"per tensor, {symmetry}"
        if self.block_rows > 1:
            return f"blocks of {self.block_rows} x {self.group_size}, {symmetry}"
        shared = "per channel" if self.group_size == -1 else f"groups of {self.group_size}"
        return f"{shared}, {symmetry}"

    @property
    def in_words(self) -> str:
        """The representation: ``4-bit weights, groups of 64, symmetric; activations ...``."""
        if self.schemes:
            return f"{', '.join(self.schemes)}, {self.details}"
        rounded = ACTIVATIONS.get(self.activations)
        activations = "as in the original" if rounded is None else rounded.words
        return f"{self.bits}-bit weights, {self.details}; activations {activations}"


class ForeignMethod(Part):
    """Of a checkpoint that was made elsewhere, how its weights lie by its config, in words."""

    words: str
