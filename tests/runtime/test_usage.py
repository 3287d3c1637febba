"""What a process counts of what it moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantlib.runtime.usage import peak_bytes, usage
from quantlib.store import open_store


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_contents_are_counted_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = str(tmp_path / "store")
    if kind == "bucket":
        address = f"{request.getfixturevalue('s3_address')}/store"
    store = open_store(address)
    read, written = usage.read_bytes, usage.written_bytes
    store.put_bytes(bytes(1000), "a")
    local = tmp_path / "file"
    local.write_bytes(bytes(3000))
    store.put_file(local, "b")
    store.put_stream([bytes(500), bytes(500)], "c")
    assert usage.written_bytes - written == 5000
    store.read("a")
    store.read("b", 100, 50)
    assert sum(map(len, store.stream("c"))) == 1000
    assert usage.read_bytes - read == 2050


def test_a_process_has_a_peak() -> None:
    assert 2**20 < peak_bytes() < 2**40
