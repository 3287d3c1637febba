"""The arguments that a checkpoint is served with, by the kind of service."""

from __future__ import annotations

from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import Kind
from quantlib.promotion.published import Published

_STREAMED = ("s3://", "gs://")


def arguments_for(published: Published, kind: Kind, uri: str) -> dict[str, Any]:
    """Arguments of vLLM's server, by name.

    KServe hands vLLM a folder. In a plain Deployment vLLM itself reads the URI, from object storage
    with its streaming loader.

    Args:
        published: The checkpoint, whose ``vllm_config.json`` holds most of them.
        kind: Of the service.
        uri: Where the service finds it.

    Raises:
        InvalidInputError: A service of this kind cannot read such a URI.
    """
    in_deployment = kind.name == "Deployment"
    if in_deployment and "://" in uri and not uri.startswith(_STREAMED):
        raise InvalidInputError.one(
            "--storage-uri",
            f"vLLM in a Deployment does not read {uri}",
            "give s3://… or gs://…, or the path where its container has the folder",
        )
    if not in_deployment and "://" not in uri:
        raise InvalidInputError.one(
            "--storage-uri", f"{uri} is no URI that KServe reads", "give s3://… or pvc://CLAIM/PATH"
        )
    arguments = dict(published.arguments)
    if in_deployment and uri.startswith(_STREAMED):
        arguments["load_format"] = "runai_streamer"
    return arguments
