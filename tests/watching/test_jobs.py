"""What a watched address means, and which job is asked for on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from published_runs import publish_as
from recipes import QUICK, quick_recipe

from quantlib.errors import StepError
from quantlib.publishing.jobs import published_of
from quantlib.steps.fetch import fetch
from quantlib.store import open_store
from quantlib.watching.jobs import find_job, resolve_release

IMAGES = ("quantlib:1.0.0",)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "watched"))


def test_a_job_is_another_one_whenever_its_result_may_be(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a")
    recipe = quick_recipe(model, calibration=QUICK["calibration"] | {"dataset": str(text)})
    digests = [find_job(recipe, str(tmp_path), IMAGES).digest]
    assert find_job(recipe, str(tmp_path), IMAGES).digest == digests[0]
    digests.append(find_job(recipe, str(tmp_path), ("quantlib:1.0.1",)).digest)
    digests.append(find_job(quick_recipe(model), str(tmp_path), IMAGES).digest)
    text.write_text("b")
    digests.append(find_job(recipe, str(tmp_path), IMAGES).digest)
    (model / "generation_config.json").write_text('{"temperature": 0.5}')
    digests.append(find_job(recipe, str(tmp_path), IMAGES).digest)
    assert len(set(digests)) == 5


def test_a_folder_is_known_by_its_content_and_not_by_its_times(model: Path) -> None:
    before = resolve_release(str(model))
    for path in model.iterdir():
        path.touch()
    (model / "README.md").write_text("no part of the model")
    assert resolve_release(str(model)) == before


def test_a_bucket_is_known_by_what_its_listing_says(model: Path, s3_address: str) -> None:
    source = open_store(f"{s3_address}/model")
    for path in model.iterdir():
        source.import_file(path, path.name)
    before = resolve_release(source.address)
    assert resolve_release(source.address) == before
    source.put_bytes(b"{}", "generation_config.json")
    assert resolve_release(source.address).digest != before.digest
    store = open_store(f"{s3_address}/store")
    with pytest.raises(StepError, match="has changed since it was looked at"):
        fetch(store, before.address)
    assert fetch(store, resolve_release(source.address).address) == fetch(store, source.address)


def test_a_job_that_led_to_a_checkpoint_is_done(model: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(model)
    job = find_job(recipe, str(tmp_path), IMAGES)
    assert job.published is None
    address = publish_as(str(tmp_path), job.digest)
    assert published_of(str(tmp_path), job.digest) == address
    assert find_job(recipe, str(tmp_path), IMAGES).published == address
