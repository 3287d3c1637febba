"""What a registry is told of a published checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlib.publishing.destination import Draft, Publication, record_of
from quantlib.recipe import Recipe
from quantlib.report.build import method_of
from quantlib.report.manifest import MANIFEST_NAME, parse_manifest
from quantlib.report.model import HTML_NAME


@dataclass(frozen=True)
class Entry:
    """A published checkpoint.

    Attributes:
        name: Of the model.
        release: Its number, which registries take as the version.
        uri: What a service loads it by; its address, where only this machine sees it.
        digest: Of the checkpoint.
        manifest: sha256 of ``manifest.json``: another one whenever anything is.
        about: What it is, in a word each: format, engine, source, recipe.
        figures: What it was judged by.
        settings: Every field of the recipe, by its path.
        page: The report as HTML.
    """

    name: str
    release: int
    uri: str
    digest: str
    manifest: str
    about: Mapping[str, str]
    figures: Mapping[str, float]
    settings: Mapping[str, str]
    page: bytes

    @property
    def properties(self) -> dict[str, str]:
        """What names it, beside its figures."""
        return {"digest": self.digest, "manifest": self.manifest, **self.about}


def entry_of(draft: Draft, publication: Publication, recipe: Recipe) -> Entry:
    """The entry of what was published.

    Args:
        draft: What was published.
        publication: Where it is.
        recipe: What it was made by.
    """
    manifest = parse_manifest(publication.manifest, MANIFEST_NAME)
    figures, method = manifest.figures.model_dump(), method_of(recipe)
    source = {name: value for name, value in manifest.source.items() if isinstance(value, str)}
    return Entry(
        name=manifest.name,
        release=manifest.release,
        uri=publication.storage_uri or publication.address,
        digest=manifest.checkpoint,
        manifest=f"sha256:{record_of(publication.manifest).sha256}",
        about={
            "format": method.format,
            "method": method.quantizer,
            "scheme": method.scheme,
            "recipe": manifest.recipe,
            "verdict": manifest.gate.outcome,
            "engine": figures.pop("engine"),
            **{f"source_{name}": value for name, value in source.items()},
        },
        figures=figures,
        settings=dict(_flat(recipe.model_dump(mode="json", exclude_none=True))),
        page=draft.texts[HTML_NAME],
    )


def _flat(value: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    found = []
    for name, each in value.items():
        if isinstance(each, Mapping):
            found += _flat(each, f"{above}{name}.")
        else:
            found.append((f"{above}{name}", str(each)))
    return found
