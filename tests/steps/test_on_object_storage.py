"""The steps on a real S3 server: what they read, what they leave, and what they publish."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import s3

from quantlib.checkpoint.source import ReceiptSource
from quantlib.errors import InvalidInputError, StoreError
from quantlib.models import open_model
from quantlib.planning.inspection import inspect_model
from quantlib.publishing import folder as publishing_folder
from quantlib.report.manifest import verify_published
from quantlib.sources.opening import open_headers
from quantlib.steps.calibrate import hidden_name
from quantlib.steps.fetch import fetch
from quantlib.steps.merge import merge
from quantlib.steps.outer import separate_outer
from quantlib.steps.publish import publish
from quantlib.steps.quantize import quantize
from quantlib.steps.texts import input_of
from quantlib.steps.validate import validate
from quantlib.store import LocalStore, open_store

Fixture = Callable[..., Any]
OVERHEAD = 2_000_000
"""Bytes that a quantize worker may read besides its blocks and its boundary: config and headers."""


LENIENT = {"max_perplexity_increase": 10, "max_kl_mean": 20, "min_top1_agreement": 0.001}
ADDRESS = f"s3://{s3.BUCKET}/steps"


@pytest.fixture(scope="module")
def model(make_model: Fixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Blocks of about 1.4 MB, and an embedding and a head of as much.
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    return make_model(tmp_path_factory.mktemp("model"), "llama", max_shard_size="5MB", **sizes)


@pytest.fixture(scope="module")
def recipe(small_recipe: Fixture) -> Any:
    return small_recipe(
        num_ranges=4,
        outlier_suppression={"method": "smooth_quant"},
        validation={"engine": "transformers", "thresholds": LENIENT},
    )


@pytest.fixture(scope="module")
def made(recipe: Any, model: Path, run_steps: Fixture, module_proxy: s3.Proxy) -> Any:
    return run_steps(open_store(ADDRESS), recipe, model)


@pytest.fixture
def proxy(module_proxy: s3.Proxy) -> s3.Proxy:
    module_proxy.requests.clear()
    return module_proxy


def test_every_runner_makes_the_same_checkpoint_wherever_the_store_is(
    made: Any, recipe: Any, model: Path, run_steps: Fixture, tmp_path: Path
) -> None:
    local = run_steps(LocalStore(tmp_path / "local"), recipe, model)
    assert made.checkpoint.digest() == local.checkpoint.digest()
    assert list(made.store.leftovers()) == []


def test_a_quantize_worker_reads_its_own_blocks(made: Any, proxy: s3.Proxy) -> None:
    source = ReceiptSource(made.store, made.model)
    checkpoint, adapter = open_model(source)
    for receipt in made.quantized:
        made.store.delete(receipt.address)
    for number, block_range in enumerate(made.plan.facts["ranges"]):
        start, stop = map(int, block_range.split(":"))
        names = [n for b in range(start, stop) for n in adapter.block_tensors(checkpoint, b)]
        own = checkpoint.bytes_of(names)
        boundary = made.calibration.files[hidden_name(start)].bytes
        if start == 0:  # the tokens and their embedding stand for it
            windows = input_of(made.store, made.calibration, "windows")
            boundary += sum(record.bytes for record in windows.files.values())
            boundary += checkpoint.info(f"{adapter.embedding}.weight").bytes
        proxy.requests.clear()
        again = quantize(
            made.store,
            made.recipe,
            block_range,
            made.model,
            made.calibration,
            made.smoothing,
            "cpu",
        )
        assert again == made.quantized[number]
        read = proxy.received()
        assert own + boundary <= read < own + boundary + 60_000 < own + boundary + OVERHEAD


def test_merge_lets_the_server_copy(made: Any, proxy: s3.Proxy) -> None:
    made.store.delete(made.checkpoint.address)
    separate_outer(made.store, made.recipe.quantization, made.model)
    proxy.requests.clear()
    again = merge(made.store, made.recipe, made.model, made.quantized)
    assert again == made.checkpoint
    weights = sum(record.bytes for record in again.files.values())
    assert proxy.received() < 0.05 * weights
    sent = sum(r.sent for r in proxy.requests)
    assert sent < 0.05 * weights


@pytest.fixture(scope="module")
def judged(made: Any) -> Any:
    return made, validate(made.store, made.recipe, made.model, made.plan, made.checkpoint, "cpu")


@pytest.mark.slow
def test_publishing_to_a_bucket_is_as_publishing_to_a_folder(
    judged: Any, proxy: s3.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime.now(UTC)
    monkeypatch.setattr(publishing_folder, "now", lambda: moment)
    made, validation = judged
    destination = f"{ADDRESS}-published"
    _, folder = publish(made.store, made.recipe, str(tmp_path / "out"), made.checkpoint, validation)
    proxy.requests.clear()
    receipt, address = publish(made.store, made.recipe, destination, made.checkpoint, validation)
    published = open_store(address)
    verify_published(published)
    assert address.startswith(f"{destination}/llama/")
    assert receipt.facts["address"] == address
    written = {file.path: bytes(published.read(file.path)) for file in published.list()}
    assert written == {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    weights = made.checkpoint.files["model-00001-of-00005.safetensors"].bytes
    assert sum(r.received for r in proxy.requests[: len(written)]) < weights
    again, same = publish(made.store, made.recipe, destination, made.checkpoint, validation)
    assert (again, same) == (receipt, address)


@pytest.mark.slow
def test_publishing_that_breaks_off_is_completed_by_the_next_run(
    judged: Any, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.02
    )
    made, validation = judged
    destination = f"{ADDRESS}-broken"
    for requests_before in (0, 4, 9, 12):
        writes = iter(range(10**6))
        proxy.faults = [
            (
                lambda request, writes=writes, limit=requests_before: (
                    request.method in ("PUT", "POST") and next(writes) >= limit
                ),
                s3.drop,
            )
        ] * 10_000
        with pytest.raises(StoreError, match="cannot be reached"):
            publish(made.store, made.recipe, destination, made.checkpoint, validation)
        proxy.faults = []
        published = list(open_store(destination).list())
        assert not any(file.path.endswith("manifest.json") for file in published)
    _, address = publish(made.store, made.recipe, destination, made.checkpoint, validation)
    verify_published(open_store(address))


def test_a_model_in_a_bucket_is_fetched_once(
    module_proxy: s3.Proxy, model: Path, tmp_path: Path
) -> None:
    source, store = open_store(f"{ADDRESS}-models/tiny"), LocalStore(tmp_path / "store")
    for path in model.iterdir():
        source.import_file(path, path.name)
    source.put_bytes(b"print('never')", "modeling.py")
    receipt = fetch(store, source.address)
    assert receipt.facts["source"] == {"kind": "s3", "address": source.address}
    assert set(receipt.files) == {path.name for path in model.iterdir()}
    for name in receipt.files:
        assert store.read(receipt.path(name)) == (model / name).read_bytes()
    module_proxy.requests.clear()
    found = inspect_model(open_headers(source.address))
    assert found == inspect_model(open_headers(str(model)))
    assert fetch(store, source.address) == receipt
    assert module_proxy.received("safetensors") < 100_000  # headers, and no weight
    source.put_bytes(b"{}", "generation_config.json")
    assert fetch(store, source.address).key != receipt.key


def test_a_bucket_without_a_model_is_refused_before_anything_is_read(
    module_proxy: s3.Proxy, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"-models/none: is empty"):
        fetch(LocalStore(tmp_path / "store"), f"{ADDRESS}-models/none")
