"""Models on a hub: huggingface_hub against a server that speaks the hub's API."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantlib.errors import InvalidInputError, StepError
from quantlib.steps.fetch import fetch

WEIGHTS = "model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def model(write_model, hub, tmp_path: Path) -> Path:
    """A folder that the hub has the content of."""
    folder = write_model(tmp_path / "model", shards=2, elements=65536)
    (folder / "modeling_tiny.py").write_text("raise SystemExit('remote code ran')")
    (folder / "onnx").mkdir()
    (folder / "onnx" / WEIGHTS).write_bytes(b"not taken")
    hub.load(folder)
    return folder


def test_a_model_is_fetched_at_its_commit(hub, model, store, silent) -> None:
    receipt = fetch(store, "hf://org/tiny@main", silent)
    assert sorted(receipt.files) == [
        "config.json",
        *SHARDS,
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    for name in receipt.files:
        assert store.read(receipt.path(name)) == (model / name).read_bytes()
    assert receipt.parameters["revision"] == hub.commit
    assert receipt.facts["source"] == {"kind": "hub", "repo": "org/tiny", "commit": hub.commit}
    assert receipt.facts["tensors"] == 4
    assert all(hub.bytes_requested(name)[-1] is None for name in SHARDS)
    assert hub.bytes_requested("modeling_tiny.py") == []
    assert hub.bytes_requested(f"onnx/{WEIGHTS}") == []


def test_the_licence_is_that_of_the_card(hub, model, store, silent) -> None:
    hub.license = "apache-2.0"
    assert fetch(store, "hf://org/tiny", silent).facts["source"]["license"] == "apache-2.0"


def test_a_branch_and_its_commit_are_the_same_work(hub, model, store, silent) -> None:
    receipt = fetch(store, "hf://org/tiny", silent)
    hub.requests.clear()
    assert fetch(store, f"hf://org/tiny@{hub.commit}", silent) == receipt
    assert hub.requests == []
    assert fetch(store, "hf://org/tiny@refs/pr/1", silent) == receipt
    assert len(hub.requests) == 1


def test_the_token_goes_to_the_hub_only(hub, model, store, silent, monkeypatch) -> None:
    hub.token = "hf_secret"
    with pytest.raises(InvalidInputError, match=r"refuses access \(401\); set HF_TOKEN"):
        fetch(store, "hf://org/tiny", silent)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.requests.clear()
    fetch(store, "hf://org/tiny", silent)
    sent = {authorization for _, path, _, authorization in hub.requests if "/cdn/" not in path}
    assert sent == {"Bearer hf_secret"}
    assert {authorization for _, path, _, authorization in hub.requests if "/cdn/" in path} == {
        None
    }


def test_an_interrupted_download_resumes(hub, model, store, silent, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    monkeypatch.setattr("quantlib.sources.arrival.AT_ONCE", 1)
    size = len(hub.files[SHARDS[1]])
    hub.cut_after = size // 2
    with pytest.raises(StepError, match="goes on where it stopped"):
        fetch(store, "hf://org/tiny", silent)
    assert list(store.list("steps")) == []
    hub.cut_after, hub.failing = None, False
    hub.requests.clear()
    receipt = fetch(store, "hf://org/tiny", silent)
    resumed = hub.bytes_requested(SHARDS[0])[-1]
    assert resumed is not None
    start, _, end = resumed.removeprefix("bytes=").partition("-")
    assert end == ""
    assert size // 4 < int(start) <= size // 2
    assert store.read(receipt.path(SHARDS[0])) == (model / SHARDS[0]).read_bytes()


def test_what_is_missing_or_closed_is_told_apart(hub, model, store, silent) -> None:
    with pytest.raises(InvalidInputError, match="hf://org/other@main: is not on http"):
        fetch(store, "hf://org/other", silent)
    with pytest.raises(InvalidInputError, match="has no revision 'v2'; name a branch"):
        fetch(store, "hf://org/tiny@v2", silent)
    hub.gated = True
    with pytest.raises(InvalidInputError, match=r"is gated; accept its terms on .*set HF_TOKEN"):
        fetch(store, "hf://org/tiny", silent)
    assert list(store.list("steps")) == []


def test_a_busy_hub_is_asked_again(hub, model, store, silent, monkeypatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.busy = 2
    assert fetch(store, "hf://org/tiny", silent).facts["model_type"] == "llama"
    hub.busy = 100
    with pytest.raises(StepError, match="too many requests"):
        fetch(store, "hf://org/tiny", silent)


def test_pickled_weights_are_refused_before_a_download(hub, model, store, silent) -> None:
    for name in SHARDS:
        del hub.files[name]
    del hub.files["model.safetensors.index.json"]
    hub.files["pytorch_model.bin"] = b"pickle"
    with pytest.raises(InvalidInputError, match=r"pickled weights only \(pytorch_model.bin\)"):
        fetch(store, "hf://org/tiny", silent)
    assert hub.bytes_requested("pytorch_model.bin") == []


def test_headers_are_judged_before_a_download(hub, write_model, store, silent, tmp_path) -> None:
    hub.load(write_model(tmp_path / "int", dtype="F8_E4M3", elements=4096))
    with pytest.raises(InvalidInputError, match=r"is quantized already: F8_E4M3 in blocks.0.a"):
        fetch(store, "hf://org/tiny", silent)
    assert all(ranges is not None for ranges in hub.bytes_requested(WEIGHTS))
    hub.load(write_model(tmp_path / "shards", shards=2))
    del hub.files[SHARDS[1]]
    with pytest.raises(InvalidInputError, match=f"names {SHARDS[1]}, which is missing"):
        fetch(store, "hf://org/tiny", silent)


def test_a_damaged_download_is_dropped(hub, model, store, silent) -> None:
    sound = hub.files[SHARDS[1]]
    hub.sent[SHARDS[1]] = sound[:-2] + b"\x01\x02"
    with pytest.raises(StepError, match=f"damaged on the way and dropped: {SHARDS[1]}"):
        fetch(store, "hf://org/tiny", silent)
    hub.sent[SHARDS[1]] = sound[:-2] + b"\xff\xff"  # reads as NaN: not the model's fault
    with pytest.raises(StepError, match=f"damaged on the way and dropped: {SHARDS[1]}"):
        fetch(store, "hf://org/tiny", silent)
    del hub.sent[SHARDS[1]]
    receipt = fetch(store, "hf://org/tiny", silent)
    assert store.read(receipt.path(SHARDS[1])) == sound


def test_nan_on_the_hub_is_the_models_fault(hub, write_model, store, silent, tmp_path) -> None:
    hub.load(write_model(tmp_path / "nan", spoil={"blocks.0.a": float("nan")}))
    with pytest.raises(InvalidInputError, match=r"blocks.0.a: holds NaN or Inf"):
        fetch(store, "hf://org/tiny", silent)


def test_no_network_is_said_at_once(hub, store, silent, monkeypatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(StepError, match=r"no answer from http.*HF_ENDPOINT"):
            fetch(store, "hf://org/tiny", silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StepError, match="HF_HUB_OFFLINE is set"):
        fetch(store, "hf://org/tiny", silent)


def test_no_space_is_said_before_a_download(hub, model, store, silent, monkeypatch) -> None:
    import shutil

    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(InvalidInputError, match="are to be downloaded; free some, or set HF_HOME"):
        fetch(store, "hf://org/tiny", silent)
    assert all(ranges is not None for ranges in hub.bytes_requested(SHARDS[0]))


@pytest.mark.slow
def test_the_environment_is_honoured(hub, model, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_TOKEN, in a process of its own."""
    hub.token = "hf_secret"
    code = (
        "import sys; from quantlib.steps.fetch import fetch; "
        "from quantlib.store import open_store; "
        "fetch(open_store(sys.argv[1]), 'hf://org/tiny'); print('torch' in sys.modules)"
    )
    home = tmp_path / "home"
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": hub.token,
    }
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"
    assert (home / "hub" / "models--org--tiny" / "snapshots" / hub.commit / SHARDS[0]).is_file()
    assert hub.token not in done.stderr
