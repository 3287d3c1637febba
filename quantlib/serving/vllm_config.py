"""``vllm_config.json``: what a checkpoint says of how vLLM serves it.

The folder may be anybody's, and its words become a command line. So the schema is closed: a
checkpoint chooses the dtype and the loader of its weights, never code, another model or what an
operator decides.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantlib.errors import InvalidInputError
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.runtime.pydantic_faults import faults_of

VLLM_CONFIG_NAME = "vllm_config.json"


class VllmConfig(BaseModel):
    """The content of ``vllm_config.json``.

    Attributes:
        quantization: What vLLM calls the format: for people. vLLM reads it from ``config.json``,
            and takes slower kernels in some versions where it is given as an argument too.
        dtype: Of activations, and of weights that are not quantized.
        load_format: How vLLM reads the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    quantization: Annotated[
        str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)
    ] = None
    dtype: Literal["auto", "bfloat16", "float16"] | None = None
    load_format: Literal["auto", "safetensors", "fastsafetensors", "runai_streamer"] | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of vLLM's server that come from it, by name."""
        return self.model_dump(exclude={"quantization"}, exclude_none=True)


def parse_vllm_config(data: bytes, where: str) -> VllmConfig:
    """The content of a ``vllm_config.json``.

    Args:
        data: The file.
        where: Its address, for people.

    Raises:
        InvalidInputError: It holds anything but what a checkpoint may say.
    """
    content = parse_mapping(data, where)
    try:
        return VllmConfig.model_validate(content)
    except ValidationError as error:
        known = ", ".join(VllmConfig.model_fields)
        raise InvalidInputError.one(
            where,
            f"is refused: {faults_of(error)}",
            f"a checkpoint may say {known}; give other arguments to the server yourself",
        ) from None
