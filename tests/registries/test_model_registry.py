"""Entries of Kubeflow's Model Registry, which a stand-in plays."""

from __future__ import annotations

import pytest
from model_registry import model_registry

from quantlib.registries.model_registry import register
from quantlib.registries.rest import RegistryError, Rest


@pytest.mark.parametrize("api", ["v1", "v1alpha3"])
def test_a_publication_is_a_version_of_a_model(entry, api: str) -> None:
    with model_registry(api) as registry:
        assert register(Rest(registry.url), entry) == "tiny, version 3"
    [model], [version], [artifact] = registry.models, registry.versions, registry.artifacts
    assert model["name"] == "tiny"
    assert (version["name"], version["registeredModelId"]) == ("3", model["id"])
    properties = version["customProperties"]
    assert properties["kl_mean"] == {"metadataType": "MetadataDoubleValue", "double_value": 0.108}
    assert properties["digest"]["string_value"] == entry.digest
    assert properties["recipe"]["string_value"] == entry.about["recipe"]
    assert (artifact["uri"], artifact["artifactType"]) == (entry.uri, "model-artifact")
    assert artifact["version"] == version["id"]


def test_the_same_again_enters_nothing(entry) -> None:
    with model_registry() as registry:
        for _ in range(2):
            register(Rest(registry.url), entry)
    assert [len(registry.models), len(registry.versions), len(registry.artifacts)] == [1, 1, 1]


def test_the_next_release_is_another_version(entry, make_entry) -> None:
    with model_registry() as registry:
        for each in (entry, make_entry(release=4, manifest="sha256:" + "5" * 64)):
            register(Rest(registry.url), each)
    assert [version["name"] for version in registry.versions] == ["3", "4"]
    assert len(registry.models) == 1


def test_what_was_broken_off_is_completed(entry) -> None:
    with model_registry() as registry:
        register(Rest(registry.url), entry)
        registry.artifacts.clear()
        register(Rest(registry.url), entry)
    assert len(registry.artifacts) == 1


def test_a_publication_in_two_places_is_one_version(entry, make_entry) -> None:
    with model_registry() as registry:
        for each in (entry, make_entry(uri="s3://bucket/tiny/2/")):
            register(Rest(registry.url), each)
    assert len(registry.versions) == 1
    assert [artifact["name"] for artifact in registry.artifacts] == ["tiny", "s3://bucket/tiny/2/"]


def test_a_version_of_another_publication_stays(entry, make_entry) -> None:
    with model_registry() as registry:
        register(Rest(registry.url), entry)
        with pytest.raises(RegistryError, match="tiny has a version 3 already, of another"):
            register(Rest(registry.url), make_entry(manifest="sha256:" + "5" * 64))
    assert len(registry.versions) == 1


def test_a_server_of_something_else_is_told(entry) -> None:
    with model_registry("v9") as registry, pytest.raises(RegistryError, match="is no Model Reg"):
        register(Rest(registry.url), entry)
