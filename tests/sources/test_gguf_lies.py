"""Headers of GGUF files that were made to hurt: one line each, in little time and memory."""

from __future__ import annotations

import random
import re
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from gguf.constants import GGML_QUANT_SIZES

from quantlib.errors import InvalidInputError
from quantlib.sources.gguf_header import read_gguf_header
from quantlib.sources.gguf_model import gguf_problems

STRING, ARRAY, U8, U32 = 8, 9, 0, 4
assert GGML_QUANT_SIZES, "imported here, so that no test measures what the import takes"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def file(*parts: bytes, keys: int | None = None, tensors: int = 0, data: bytes = b"") -> bytes:
    count = len(parts) - tensors if keys is None else keys
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + b"".join(parts) + data


def nested(depth: int, inner: bytes = struct.pack("<IQ", U8, 0)) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * depth + inner


LIES = {
    "nested arrays": (file(key("a", ARRAY, nested(100_000))), "nested too deeply"),
    "as many keys as there are numbers": (file(keys=2**64 - 1), "keys and 0 tensors: corrupt"),
    "as many tensors": (file(tensors=2**63, keys=0), "tensors: corrupt"),
    "a key as long as memory": (file(struct.pack("<Q", 2**62), keys=1), "truncated or corrupt"),
    "a text as long as memory": (
        file(key("a", STRING, struct.pack("<Q", 2**63 - 1))),
        "truncated or corrupt",
    ),
    "an array as long as memory": (
        file(key("a", ARRAY, struct.pack("<IQ", U8, 2**63))),
        "truncated or corrupt",
    ),
    "an array of as many texts": (
        file(key("a", ARRAY, struct.pack("<IQ", STRING, 2**63) + bytes(80_000))),
        "truncated or corrupt",
    ),
    "a kind that is none": (file(key("a", 99, b"")), "unknown type 99"),
    "a key twice": (file(key("a", U8, b"1"), key("a", U8, b"1")), "a is there twice"),
    "no alignment": (file(key("general.alignment", U32, bytes(4))), "general.alignment"),
    "alignment by words": (file(key("general.alignment", STRING, text("x"))), "general.alignment"),
    "alignment as long as memory": (
        file(key("general.alignment", 10, struct.pack("<Q", 2**63))),
        "general.alignment",
    ),
    "a tensor as large as memory": (
        file(tensor("t", [2**62] * 4), tensors=1, data=bytes(64)),
        "t: truncated",
    ),
    "a tensor far away": (
        file(tensor("t", [1], offset=2**64 - 1), tensors=1, data=bytes(64)),
        "t: truncated",
    ),
    "dimensions without number": (
        file(text("t") + struct.pack("<I", 2**32 - 1), tensors=1, keys=0),
        "dimensions: corrupt",
    ),
    "tensors over one another": (
        file(tensor("t", [8]), tensor("u", [8], offset=4), tensors=2, data=bytes(96)),
        "u overlaps",
    ),
    "a name that ends the line": (
        file(tensor("t\nerror: x", [1], kind=77), tensors=1, data=bytes(64)),
        r"t\\nerror: x has the unknown type 77",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_line(tmp_path: Path, lie: str) -> None:
    content, says = LIES[lie]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(InvalidInputError) as caught:
        read_gguf_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = str(caught.value)
    assert re.search(says, found), found
    assert len(found.splitlines()) == 1
    assert time.monotonic() - started < 10
    assert peak < 20 << 20


@pytest.mark.parametrize(
    "settings",
    [
        {"llama.block_count": 2**31 - 1},
        {"llama.block_count": 2**32 - 1},
        {"tokenizer.ggml.bos_token_id": "first"},
        {"llama.rope.freq_base": float("nan")},
        {"llama.attention.layer_norm_rms_epsilon": "small"},
    ],
)
def test_what_the_metadata_claims_is_not_counted_up_to(write_gguf, tmp_path, settings) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, settings=settings)
    (problem,) = gguf_problems(path)
    assert len(str(problem).splitlines()) == 1


def test_damage_at_random_is_read_or_refused(write_gguf, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    sound = path.read_bytes()
    length = min(len(sound), 9000)
    chance = random.Random(14)
    refused = 0
    for _ in range(600):
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(length)
            match chance.randrange(3):
                case 0:
                    damaged[at] = chance.randrange(256)
                case 1:
                    number = chance.choice([0, 1, 9, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
                    damaged[at : at + 8] = number.to_bytes(8, "little")
                case 2:
                    del damaged[at : at + chance.randint(1, 40)]
        path.write_bytes(damaged)
        problems = gguf_problems(path)
        refused += bool(problems)
        assert all(len(str(problem).splitlines()) == 1 for problem in problems)
    assert refused > 100
