"""Publishing, and the check of what was published."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from quantlib.errors import GateFailedError, InvalidInputError, StoreError
from quantlib.publishing import folder as publishing_folder
from quantlib.report.manifest import MANIFEST_NAME, read_manifest, verify_published
from quantlib.report.model import Report
from quantlib.report.provenance import provenance_of
from quantlib.steps import publish as step
from quantlib.steps.contract import StepCall
from quantlib.steps.publish import publish
from quantlib.store import LocalStore, StepOutput, commit_step


def _load_runs() -> Any:
    """The made-up run of the report's tests."""
    path = Path(__file__).parents[1] / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_runs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_run: Callable[..., Any] = _load_runs().commit_run


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return make_run(tmp_path)


def publish_run(run: Any, destination: str = "") -> tuple[Any, Path]:
    receipt, address = publish(run.store, run.recipe, destination, run.checkpoint, run.validation)
    return receipt, Path(address)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")}


def test_published_folder_holds_the_checkpoint_and_what_is_known_of_it(run, tmp_path) -> None:
    receipt, folder = publish_run(run)
    digest = run.checkpoint.facts["checkpoint_digest"]
    assert folder == tmp_path / "published" / "Tiny-Llama-6" / digest.removeprefix("sha256:")
    assert set(contents(folder)) == {
        "config.json",
        "tokenizer.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "quantization_report.json",
        "quantization_report.html",
        "README.md",
        "provenance.json",
        "receipts.json",
        "manifest.json",
    }
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["schema"] == "quantlib/manifest/2"
    assert manifest["checkpoint"] == digest
    assert manifest["recipe"] == run.recipe.digest()
    assert manifest["gate"]["outcome"] == "passed"
    assert manifest["figures"]["kl_mean"] == 0.108
    assert manifest["source"]["repo"] == "example-org/Tiny-Llama-6"
    for name, record in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert record["bytes"] == len(data)
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
    assert receipt.step == "publish"
    assert receipt.inputs["validation"] == run.validation.reference()
    assert receipt.facts == {
        "address": str(folder),
        "name": "Tiny-Llama-6",
        "checkpoint_digest": digest,
    }
    assert not list(folder.parent.glob(".*"))  # the lock is gone
    verify_published(LocalStore(folder))


def test_published_report_and_provenance_reach_back_to_the_source(run) -> None:
    _, folder = publish_run(run)
    report = Report.from_json((folder / "quantization_report.json").read_bytes())
    assert report.steps[-1].step == "validate"
    statement = json.loads((folder / "provenance.json").read_bytes())
    assert statement == provenance_of(report)
    build = statement["predicate"]["buildDefinition"]
    assert build["externalParameters"]["source"]["commit"] == "c0ffee" * 6


def test_a_failed_verdict_is_not_published(tmp_path) -> None:
    run = make_run(tmp_path, passed=False)
    with pytest.raises(GateFailedError, match="above its limit"):
        publish_run(run)
    assert not (tmp_path / "published").exists()


def test_the_validation_of_another_checkpoint_is_refused(run, tmp_path) -> None:
    other = make_run(tmp_path / "other", weights={"model.safetensors": b"other"})
    with pytest.raises(InvalidInputError, match="is not of the checkpoint"):
        publish(run.store, run.recipe, "", run.checkpoint, other.validation)
    assert not (tmp_path / "published").exists()


def test_publishing_again_changes_nothing(run) -> None:
    first, folder = publish_run(run)
    before = contents(folder)
    again, same = publish_run(run)
    assert (again, same) == (first, folder)
    assert contents(folder) == before


def test_publishing_again_notices_what_was_changed_since(run) -> None:
    _, folder = publish_run(run)
    (folder / "config.json").write_bytes(b"{}")
    with pytest.raises(InvalidInputError, match=r"config\.json: holds 2 bytes"):
        publish_run(run)


def test_publishing_again_restores_a_folder_that_was_removed(run, monkeypatch) -> None:
    moment = datetime.now(UTC)
    monkeypatch.setattr(publishing_folder, "now", lambda: moment)
    first, folder = publish_run(run)
    before = contents(folder)
    for path in folder.iterdir():
        path.unlink()
    assert publish_run(run) == (first, folder)
    assert contents(folder) == before


def test_a_crash_leaves_no_manifest_and_the_next_run_completes(run, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        stream = run.store.stream

        def full_disk(path: str) -> Any:
            if path == run.checkpoint.path("model-00002-of-00002.safetensors"):
                yield b"other"
                raise OSError(28, "No space left on device")
            yield from stream(path)

        patch.setattr(run.store, "stream", full_disk)
        with pytest.raises(StoreError, match="No space left on device"):
            publish_run(run)
    [folder] = (tmp_path / "published" / "Tiny-Llama-6").iterdir()
    assert not (folder / MANIFEST_NAME).exists()
    assert not (folder / "model-00002-of-00002.safetensors").exists()
    kept = (folder / "model-00001-of-00002.safetensors").stat()

    publish_run(run)
    verify_published(LocalStore(folder))
    assert (folder / "model-00001-of-00002.safetensors").stat().st_ino == kept.st_ino


@pytest.mark.parametrize("files_before", range(8))
def test_the_manifest_is_written_last(run, tmp_path, monkeypatch, files_before: int) -> None:
    with monkeypatch.context() as patch:
        put_file, written = LocalStore.put_file, []

        def crash(store: LocalStore, local: Path, path: str) -> None:
            if len(written) == files_before:
                raise KeyboardInterrupt
            put_file(store, local, path)
            written.append(path)

        patch.setattr(LocalStore, "put_file", crash)
        with pytest.raises(KeyboardInterrupt):
            publish_run(run)
    assert len(written) == files_before
    assert not list((tmp_path / "published").rglob(MANIFEST_NAME))
    _, folder = publish_run(run)
    verify_published(LocalStore(folder))


def test_a_file_damaged_before_the_manifest_is_written_again(run) -> None:
    _, folder = publish_run(run)
    (folder / MANIFEST_NAME).unlink()
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    publish_run(run)
    verify_published(LocalStore(folder))


def test_a_folder_with_files_of_somebody_else_is_not_completed(run) -> None:
    _, folder = publish_run(run)
    (folder / MANIFEST_NAME).unlink()
    (folder / "modeling_custom.py").write_text("print()")
    with pytest.raises(InvalidInputError, match=r"modeling_custom\.py: is no part"):
        publish_run(run)
    assert not (folder / MANIFEST_NAME).exists()


def test_a_damaged_store_is_not_published(run, tmp_path) -> None:
    path = run.store.local_path(run.checkpoint.path("model-00002-of-00002.safetensors"))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(StoreError, match="what the store gave is not what its receipt says"):
        publish_run(run)
    assert not list((tmp_path / "published").rglob(MANIFEST_NAME))


def test_publishers_of_one_checkpoint_wait_for_each_other(tmp_path) -> None:
    weights = {f"model-{index}.safetensors": bytes([index]) * 3_000_000 for index in range(4)}
    run = make_run(tmp_path, weights=weights)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: publish_run(run), range(4)))
    assert len({receipt.digest() for receipt, _ in results}) == 1
    verify_published(LocalStore(results[0][1]))
    assert not list(results[0][1].parent.glob(".*"))


def test_the_destination_of_the_recipe_and_the_argument(run, tmp_path) -> None:
    publishing = run.recipe.publish.model_copy(update={"destination": str(tmp_path / "recipe's")})
    recipe = run.recipe.model_copy(update={"publish": publishing})
    _, address = publish(run.store, recipe, "", run.checkpoint, run.validation)
    assert Path(address).is_relative_to(tmp_path / "recipe's")
    given = (tmp_path / "given").as_uri()
    _, address = publish(run.store, recipe, given, run.checkpoint, run.validation)
    assert Path(address).is_relative_to(tmp_path / "given")


def test_a_destination_that_cannot_be_written_is_refused(run, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidInputError, match="cannot be created"):
        publish_run(run, str(tmp_path / "file" / "published"))
    with pytest.raises(InvalidInputError, match="unsupported kind of destination"):
        publish_run(run, "ftp://example.org/models")


def test_verification_tells_everything_that_is_wrong(run) -> None:
    _, folder = publish_run(run)
    shard = folder / "model-00001-of-00002.safetensors"
    before = shard.read_bytes()
    shard.write_bytes(before[:-1] + b"?")
    found, expected = (hashlib.sha256(data).hexdigest() for data in (shard.read_bytes(), before))
    (folder / "tokenizer.json").unlink()
    (folder / "extra.py").write_text("")
    renamed = folder.rename(folder.with_name("latest"))
    with pytest.raises(InvalidInputError) as caught:
        verify_published(LocalStore(renamed))
    assert [problem.what for problem in caught.value.problems] == [
        f"is not named by its checkpoint's digest, {run.checkpoint.facts['checkpoint_digest']}",
        f"its sha256 is {found[:12]}…, not the manifest's {expected[:12]}…",
        "there is no such file",
        "is not in the manifest",
    ]


def test_a_manifest_that_was_changed_along_with_a_file_is_noticed(run) -> None:
    _, folder = publish_run(run)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(b"something else")
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    manifest["files"][shard.name] = {
        "bytes": 14,
        "sha256": hashlib.sha256(b"something else").hexdigest(),
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match="its files do not have the checkpoint's digest"):
        verify_published(LocalStore(folder))


def test_a_folder_without_a_manifest_is_not_published(run) -> None:
    _, folder = publish_run(run)
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(InvalidInputError, match="without it the checkpoint is not published"):
        verify_published(LocalStore(folder))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../b", "./a", "."])
def test_a_manifest_that_points_elsewhere_is_refused(run, name: str) -> None:
    _, folder = publish_run(run)
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    manifest["files"][name] = {"bytes": 0, "sha256": "0" * 64}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match="no plain path"):
        read_manifest(LocalStore(folder))


def no_tasks(output: StepOutput) -> None:
    output.facts = {"verdict": "passed", "reason": "the recipe asks for no tasks", "tasks": []}


def test_the_step_reads_and_writes_what_kubeflow_passes(run, tmp_path) -> None:
    given = {
        "checkpoint": run.checkpoint,
        "validation": run.validation,
        "tasks": commit_step(run.store, "tasks", {}, {}, no_tasks),
    }
    for name, receipt in given.items():
        (tmp_path / name).write_bytes(receipt.to_json())
    call = StepCall.parse(
        json.dumps(
            {
                "inputs": {
                    "parameterValues": {
                        "recipe": run.recipe.canonical_json(),
                        "destination": "",
                        "job": "",
                        "store": run.store.address,
                    },
                    "artifacts": {
                        name: {"artifacts": [{"name": name, "uri": str(tmp_path / name)}]}
                        for name in given
                    },
                },
                "outputs": {
                    "parameters": {"address": {"outputFile": str(tmp_path / "out" / "address")}},
                    "artifacts": {
                        name: {"artifacts": [{"uri": str(tmp_path / file)}]}
                        for name, file in (
                            ("published", "receipt"),
                            ("publish_summary", "summary.md"),
                        )
                    },
                    "outputFile": str(tmp_path / "output.json"),
                },
            }
        )
    )
    step.main(call)
    call.finish()
    folder = Path((tmp_path / "out" / "address").read_text())
    verify_published(LocalStore(folder))
    assert json.loads((tmp_path / "receipt").read_bytes())["facts"]["address"] == str(folder)
    assert f"quantlib verify {folder}\n" in (tmp_path / "summary.md").read_text()
    written = json.loads((tmp_path / "output.json").read_text())["artifacts"]
    metadata = written["published"]["artifacts"][0]["metadata"]
    manifest = read_manifest(LocalStore(folder))
    expected = {
        "framework": "vllm",
        "format": "gptq",
        "scheme": "W4A16",
        "bytes": run.checkpoint.facts["bytes_quantized"],
        "digest": manifest.checkpoint,
        "address": str(folder),
        "display_name": f"{manifest.name}, release 1",
        "name": manifest.name,
        "release": 1,
        "verdict": "passed",
        "perplexity_quantized": manifest.figures.perplexity_quantized,
        "kl_mean": manifest.figures.kl_mean,
    }
    assert metadata.items() >= expected.items()
