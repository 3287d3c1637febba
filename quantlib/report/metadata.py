"""What Kubeflow shows of a model: the metadata of the artifacts that are checkpoints."""

from __future__ import annotations

from typing import Any

from quantlib.recipe import Recipe
from quantlib.report.build import method_of
from quantlib.report.manifest import MANIFEST_NAME, parse_manifest
from quantlib.store import Receipt, Store

FRAMEWORK = "vllm"


def checkpoint_metadata(recipe: Recipe, checkpoint: Receipt) -> dict[str, Any]:
    """What a checkpoint is.

    Args:
        recipe: What it was made by.
        checkpoint: The merge step's receipt.
    """
    method = method_of(recipe)
    return {
        "framework": FRAMEWORK,
        "format": method.format,
        "scheme": method.scheme,
        "bytes": checkpoint.facts["bytes_quantized"],
        "digest": checkpoint.facts["checkpoint_digest"],
    }


def published_metadata(
    store: Store, recipe: Recipe, checkpoint: Receipt, published: Receipt
) -> dict[str, Any]:
    """What was published, where, and how good it is.

    Args:
        store: Where the steps' files are.
        recipe: What it was made by.
        checkpoint: The merge step's receipt.
        published: The publish step's receipt.
    """
    path = published.path(MANIFEST_NAME)
    manifest = parse_manifest(bytes(store.read(path)), store.full_address(path))
    served = {name: uri for name, uri in published.facts.items() if name == "storage_uri"}
    return (
        checkpoint_metadata(recipe, checkpoint)
        | served
        | {
            "display_name": f"{manifest.name}, release {manifest.release}",
            "address": published.facts["address"],
            "name": manifest.name,
            "release": manifest.release,
            "verdict": manifest.gate.outcome,
            "perplexity_original": manifest.figures.perplexity_original,
            "perplexity_quantized": manifest.figures.perplexity_quantized,
            "kl_mean": manifest.figures.kl_mean,
        }
    )
