"""Reads an object in parts, a bounded number at once, and goes on where a part broke off."""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import closing
from typing import Any

from botocore.exceptions import (
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from quantlib.runtime.usage import usage

PART_BYTES = 16 << 20
PARALLEL_PARTS = 8
_ATTEMPTS = 8
_LONGEST_WAIT_SECONDS = 20.0
_BROKEN = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
"""Errors of a body; those before it are the client's to retry."""

_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")


class RangeError(Exception):
    """The object ends before the range does, or its body cannot be had."""


class ObjectReader:
    """Reads one object.

    Args:
        client: The S3 client.
        bucket: Where the object is.
        key: Its key.
        pool: Runs the parts; its size bounds how many are on the way at once.
    """

    def __init__(self, client: Any, bucket: str, key: str, pool: Executor) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._pool = pool

    def read(self, offset: int, length: int | None) -> bytearray:
        """``length`` bytes from ``offset``; to the end by default.

        Raises:
            RangeError: The object ends before the range does.
            ClientError: The server refused.
        """
        if length is None:
            first, total = self._open_end(offset)
            rest = self.read(offset + len(first), total - offset - len(first))
            return first + rest if rest else first
        data = bytearray(length)
        view = memoryview(data)
        starts = range(0, length, PART_BYTES)
        fill = [(offset + start, view[start : min(start + PART_BYTES, length)]) for start in starts]
        if len(fill) == 1:
            self._fill(*fill[0])
        else:
            for part in [self._pool.submit(self._fill, *arguments) for arguments in fill]:
                part.result()
        return data

    def parts(self) -> Iterator[bytearray]:
        """The object from start to end, with the next parts on their way.

        Raises:
            ClientError: The server refused.
        """
        first, total = self._open_end(0)
        waiting: deque[Future[bytearray]] = deque()
        position = len(first)
        try:
            yield first
            while position < total or waiting:
                while position < total and len(waiting) < PARALLEL_PARTS // 2:
                    length = min(PART_BYTES, total - position)
                    waiting.append(self._pool.submit(self.read, position, length))
                    position += length
                yield waiting.popleft().result()
        finally:
            for part in waiting:
                part.cancel()

    def _open_end(self, offset: int) -> tuple[bytearray, int]:
        """The first part from ``offset`` on, and the size of the whole object."""
        try:
            answer = self._get(offset, offset + PART_BYTES)
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") != 416:
                raise
            return bytearray(), offset  # nothing lies behind the offset
        total = _total_bytes(answer)
        data = bytearray(min(PART_BYTES, total - offset))
        self._fill(offset, memoryview(data), answer)
        return data, total

    def _fill(self, offset: int, view: memoryview, answer: dict[str, Any] | None = None) -> None:
        """Reads as many bytes as ``view`` holds.

        Args:
            offset: Of the first byte.
            view: Where they go.
            answer: A request that was made for them already.
        """
        filled, failures = 0, 0
        while filled < len(view):
            answer = answer or self._get_range(offset, filled, len(view))
            before, broken = filled, "no more bytes came"
            try:
                with closing(answer["Body"]) as body:
                    while count := body.readinto(view[filled:]):
                        filled += count
                        usage.read(count)
            except _BROKEN as error:
                broken = str(error)
            answer = None
            if filled < len(view):
                failures = 0 if filled > before else failures + 1
                if failures == _ATTEMPTS:
                    raise RangeError(f"breaks off at byte {offset + filled}: {broken}")
                time.sleep(min(_LONGEST_WAIT_SECONDS, 0.1 * 2**failures) * random.random())

    def _get_range(self, offset: int, filled: int, length: int) -> dict[str, Any]:
        try:
            answer = self._get(offset + filled, offset + length)
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") != 416:
                raise
            raise RangeError(f"ends before the range {offset}+{length}") from None
        missing = offset + length - _total_bytes(answer)
        if missing > 0:
            answer["Body"].close()
            raise RangeError(f"ends {missing} bytes before the range {offset}+{length}")
        return answer

    def _get(self, start: int, end: int) -> dict[str, Any]:
        return self._client.get_object(
            Bucket=self._bucket, Key=self._key, Range=f"bytes={start}-{end - 1}"
        )


def _total_bytes(answer: dict[str, Any]) -> int:
    match = _TOTAL.fullmatch(answer.get("ContentRange", ""))
    if match is None:
        raise RangeError("the server does not read by ranges, which is needed")
    return int(match[1])
