"""Headers of safetensors files that were made to hurt: one line each, in little time and memory."""

from __future__ import annotations

import json
import random
import re
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantlib.checkpoint.header import read_header
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError

U8 = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
WHOLE = json.dumps(U8)


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read_header(FolderSource(path.parent), path.name)
    text = str(caught.value)
    assert len(text.splitlines()) == len(caught.value.problems), text
    assert len(text) < 30_000
    return text


def write(
    path: Path, header: bytes | str, data: bytes = bytes(4), length: int | None = None
) -> None:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


LIES = {
    "nested lists": ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "nested mappings": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    "nested a little": ('{"a":' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
    "a nested __metadata__": ('{"__metadata__":' + "[" * 9999 + "]" * 9999 + "}", "nested"),
    "a key twice": (f'{{"a":{WHOLE},"a":{WHOLE}}}', "the key 'a' twice"),
    "no UTF-8": (b'{"\xff\xfe":1}', "not UTF-8"),
    "half a surrogate": ('{"\\ud800":1}', "surrogate"),
    "NaN": ('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}', "NaN"),
    "infinity": ('{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,4]}}', "out of range"),
    "a long number": (
        f'{{"a":{{"dtype":"U8","shape":[{"9" * 5000}],"data_offsets":[0,4]}}}}',
        "5000 digits",
    ),
    "a list": ("[]", "mapping"),
    "an entry of another kind": ('{"a":[]}', "does not hold dtype, shape"),
    "one offset": ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[4]}}', "two data_offsets"),
    "a dtype that is a list": ('{"a":{"dtype":[],"shape":[4],"data_offsets":[0,4]}}', "dtype"),
    "a shape that is a text": ('{"a":{"dtype":"U8","shape":"4","data_offsets":[0,4]}}', "shape"),
    "true": ('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', "no whole|not a whole"),
    "a fraction": ('{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}', "not a whole"),
    "below nothing": ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}}', "not a whole"),
    "an overflow": (
        json.dumps({"a": {"dtype": "U8", "shape": [2**32, 2**32], "data_offsets": [0, 4]}}),
        "cannot hold",
    ),
    "the end before the start": (
        '{"a":{"dtype":"U8","shape":[],"data_offsets":[4,0]}}',
        "cannot hold",
    ),
    "beyond the end": (
        json.dumps({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}),
        "truncated",
    ),
    "a name that ends the line": (
        '{"a\\nerror: b\\u001b[2J":{"dtype":"?","shape":[],"data_offsets":[0,4]}}',
        r"a\\nerror: b\\x1b\[2J",
    ),
    "many dimensions": (
        json.dumps({"a": {"dtype": "U8", "shape": [2**60] * 300_000, "data_offsets": [0, 4]}}),
        "300000 dimensions",
    ),
    "many bad entries": (
        json.dumps({f"t{number}": 0 for number in range(50_000)}),
        "49991 more corrupt entries",
    ),
    "many empty values": ('{"a":[' + "[]," * 3_000_000 + "0]}", "lists no tensors"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_line(tmp_path: Path, lie: str) -> None:
    header, says = LIES[lie]
    path = tmp_path / "m.safetensors"
    write(path, header)
    tracemalloc.start()
    started = time.monotonic()
    try:
        text = refusal(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert re.search(says, text), text
    assert time.monotonic() - started < 20
    assert peak < 200 << 20


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_000, 13])
def test_a_length_that_lies_is_not_allocated(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    write(path, "{}", length=length)
    tracemalloc.start()
    text = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "its header should be" in text
    assert peak < 1 << 20


def test_damage_at_random_is_read_or_refused(tmp_path: Path) -> None:
    sound_path, path = tmp_path / "sound.safetensors", tmp_path / "m.safetensors"
    save_file(
        {"a": torch.ones(3, 4), "b": torch.ones(2).half(), "c": torch.empty(0)},
        sound_path,
        {"format": "pt"},
    )
    sound = sound_path.read_bytes()
    chance = random.Random(14)
    pieces = [b"[", b"]", b"{", b"}", b'"', b",", b":", b"-", b"9" * 19, b"\\u", b"\0", b"\xff"]
    refused = 0
    for _ in range(4000):
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(damaged))
            match chance.randrange(4):
                case 0:
                    damaged[at] = chance.randrange(256)
                case 1:
                    damaged[at:at] = chance.choice(pieces) * chance.randint(1, 40)
                case 2:
                    del damaged[at : at + chance.randint(1, 30)]
                case 3:
                    source = chance.randrange(len(damaged))
                    damaged[at:at] = damaged[source : source + chance.randint(1, 60)]
            if not damaged:
                break
        if chance.random() < 0.7 and len(damaged) > 24:  # the length fits what was changed
            damaged[:8] = max(0, len(damaged) - 8 - 52).to_bytes(8, "little")
        path.write_bytes(damaged)
        try:
            tensors = read_header(FolderSource(tmp_path), path.name)
        except InvalidInputError as error:
            refused += 1
            assert len(str(error).splitlines()) == len(error.problems)
        else:
            assert all(0 < info.start <= info.end <= len(damaged) for info in tensors.values())
    assert refused > 2000
