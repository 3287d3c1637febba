"""A store in a bucket of an S3 server: AWS, or one that speaks its protocol.

Where the server is and who asks is told by what every S3 client reads: the environment
(``AWS_ENDPOINT_URL_S3``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, …), a credentials file, or the role
of the machine or pod. ``QUANTLIB_S3_ADDRESSING`` (``path`` or ``virtual``) says how the bucket is
named in requests; servers other than AWS are asked by path unless it is set.

Every file carries its sha256 as metadata, and every request that writes carries a checksum that the
server verifies, so asking for an object's head is enough to know what it is.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from quantlib.errors import InvalidInputError, StoreError
from quantlib.runtime.usage import usage
from quantlib.store.base import Leftover, Store, StoredFile, require_expected
from quantlib.store.receipt import FileRecord
from quantlib.store.s3_errors import MISSING, code_of, explain
from quantlib.store.s3_reading import PARALLEL_PARTS, ObjectReader, RangeError

ADDRESSING_VARIABLE = "QUANTLIB_S3_ADDRESSING"
SCRATCH_VARIABLE = "QUANTLIB_SCRATCH"
"""Environment variable: the folder for files in the making, the system's own by default."""

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_FAILURES = (BotoCoreError, ClientError, ResponseParserError)
_DIGEST_KEY = "sha256"
_UPLOAD = TransferConfig(
    multipart_threshold=32 << 20, multipart_chunksize=32 << 20, max_concurrency=PARALLEL_PARTS
)
# A server copies at some 100 MB a second and answers at the end: parts keep that below a timeout.
_COPY = TransferConfig(
    multipart_threshold=1 << 30, multipart_chunksize=512 << 20, max_concurrency=PARALLEL_PARTS
)
_CLIENT: dict[str, Any] = {
    # 8 attempts, waiting up to 20 s before each: about a minute of an overloaded server.
    "retries": {"mode": "standard", "total_max_attempts": 8},
    "connect_timeout": 10,
    "read_timeout": 60,
    "max_pool_connections": 2 * PARALLEL_PARTS,
    "tcp_keepalive": True,
    "user_agent_extra": "quantlib",
}


class S3Store(Store):
    """Files below a prefix of a bucket.

    Args:
        address: ``s3://bucket/prefix``.
        client: The client to ask with; by default one that is set up from the environment.

    Raises:
        InvalidInputError: The address is not written so.
    """

    def __init__(self, address: str, client: Any = None) -> None:
        match = _ADDRESS.fullmatch(address.rstrip("/"))
        if match is None:
            # The address is not repeated where it may hold credentials.
            shown = "store address" if "@" in address else f"store {address}"
            raise InvalidInputError.one(
                shown,
                "is no address in object storage",
                "give s3://bucket/prefix; credentials come from the environment, not from here",
            )
        self.address = address.rstrip("/")
        self.bucket = match["bucket"]
        self._prefix = f"{match['prefix']}/" if match["prefix"] else ""
        self._given_client = client
        self._pool_lock = threading.Lock()

    @cached_property
    def client(self) -> Any:
        """The S3 client."""
        return self._given_client or connect()

    def size(self, path: str) -> int:
        return int(self._head(path)["ContentLength"])

    def record(self, path: str) -> FileRecord:
        return self._recorded(path, self._head(path))

    def holds(self, path: str, record: FileRecord) -> bool:
        try:
            return self.record(path).same_content(record)
        except StoreError as error:
            if _is_missing(error.__cause__):
                return False
            raise

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytearray:
        with self._explained(path):
            return self._reader(path).read(offset, length)

    def stream(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes | bytearray]:
        with self._explained(path):
            yield from self._reader(path).parts()

    def exists(self, path: str) -> bool:
        try:
            with self._explained(path):
                self.client.head_object(Bucket=self.bucket, Key=self.key(path))
        except StoreError as error:
            if _is_missing(error.__cause__):
                return False
            raise
        return True

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        below = f"{self.key(prefix)}/" if prefix else self._prefix
        with self._explained(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=below
            )
            for page in pages:
                self._require_listing(page)
                for entry in page.get("Contents", ()):
                    if not entry["Key"].endswith("/"):  # some servers list folders too
                        path = entry["Key"].removeprefix(self._prefix)
                        version = entry["ETag"].strip('"')
                        yield StoredFile(path, entry["Size"], entry["LastModified"], version)

    def put_file(self, local: Path, path: str, sha256: str | None = None) -> None:
        self.import_file(local, path, sha256)
        local.unlink()

    def import_file(self, local: Path, path: str, sha256: str | None = None) -> None:
        try:
            if sha256 is None:
                with local.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            extra = {"Metadata": {_DIGEST_KEY: sha256}, "ChecksumAlgorithm": "SHA256"}
            # On failure the transfer aborts its multipart upload.
            with self._explained(path), create_transfer_manager(self.client, _UPLOAD) as manager:
                manager.upload(str(local), self.bucket, self.key(path), extra).result()
            usage.written(local.stat().st_size)
        except OSError as error:
            raise StoreError(str(local), error.strerror or str(error)) from None

    def put_bytes(self, data: bytes, path: str) -> None:
        with self._explained(path):
            self._put(data, path)

    def put_new(self, data: bytes, path: str) -> bool:
        with self._explained(path):
            try:
                self._put(data, path, IfNoneMatch="*")
                return True
            except ClientError as error:
                code = code_of(error)
                if code in ("NotImplemented", "501"):
                    # A server without conditional writes: look first, which leaves a moment.
                    if self.exists(path):
                        return bytes(self.read(path)) == data
                    self._put(data, path)
                    return True
                if code not in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                    raise
        # The first attempt may have arrived, and only its answer been lost.
        return self.exists(path) and bytes(self.read(path)) == data

    def put_stream(
        self, chunks: Iterable[bytes | bytearray], path: str, expected: FileRecord | None = None
    ) -> FileRecord:
        digest, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self.scratch) as file:
            try:
                for chunk in chunks:
                    digest.update(chunk)
                    size += file.write(chunk)
                file.flush()
            except OSError as error:
                raise StoreError(file.name, error.strerror or str(error)) from None
            written = FileRecord(bytes=size, sha256=digest.hexdigest())
            require_expected(self.full_address(path), written, expected)
            self.import_file(Path(file.name), path, written.sha256)
        return written

    def copy_from(
        self,
        other: S3Store,
        source: str,
        path: str,
        record: FileRecord,
        version: str | None = None,
    ) -> None:
        """Lets the server copy a file of another bucket or prefix, and nothing else than that file.

        Args:
            other: Where the file is.
            source: Its path there.
            path: Where it goes here.
            record: What it has to be.
            version: Of the file that was read and is what was recorded, as a listing shows it. None
                to go by what the server vouches for.

        Raises:
            StoreError: It is missing, is something else, changed meanwhile, or could not be copied.
        """
        tag = f'"{version}"'
        if version is None:
            head = other._head(source)
            require_expected(other.full_address(source), other._recorded(source, head), record)
            tag = head["ETag"]
        extra = {
            "Metadata": {_DIGEST_KEY: record.sha256},
            "MetadataDirective": "REPLACE",
            "CopySourceIfMatch": tag,
        }
        origin = {"Bucket": other.bucket, "Key": other.key(source)}
        with self._explained(path), create_transfer_manager(self.client, _COPY) as manager:
            manager.copy(origin, self.bucket, self.key(path), extra).result()

    def can_copy_from(self, other: Store) -> bool:
        """Whether another store is on the same server, so that it can copy from there."""
        return isinstance(other, S3Store) and other.endpoint == self.endpoint

    def export_file(self, path: str, local: Path) -> None:
        digest, hashed = self.record(path).sha256, hashlib.sha256()
        partial_file = local.with_name(f".{local.name}.{os.getpid()}")
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            with partial_file.open("wb") as file:
                for chunk in self.stream(path):
                    hashed.update(chunk)
                    file.write(chunk)
            if hashed.hexdigest() != digest:
                raise StoreError(self.full_address(path), "was damaged on the way")
            partial_file.replace(local)
        except OSError as error:
            raise StoreError(str(local), error.strerror or str(error)) from None
        finally:
            partial_file.unlink(missing_ok=True)

    def delete(self, path: str) -> None:
        with self._explained(path):
            self.client.delete_object(Bucket=self.bucket, Key=self.key(path))

    def leftovers(self) -> Iterator[Leftover]:
        """Multipart uploads that were neither completed nor aborted."""
        with self._explained(""):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._prefix
            )
            for page in pages:
                for upload in page.get("Uploads", ()):
                    yield Leftover(
                        f"unfinished upload of {upload['Key'].removeprefix(self._prefix)}",
                        upload["Initiated"],
                        partial(self._abort, upload["Key"], upload["UploadId"]),
                    )

    def check_access(self) -> None:
        """Asks the server whether files can be listed and written here; leaves nothing.

        Raises:
            StoreError: They cannot, and why.
        """
        with self._explained(""):
            self._require_listing(
                self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)
            )
            key = self.key("write-check")
            upload = self.client.create_multipart_upload(Bucket=self.bucket, Key=key)
            self._abort(key, upload["UploadId"])

    @property
    def scratch(self) -> Path:
        return Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir())

    @property
    def endpoint(self) -> str:
        """Where the server is."""
        return str(self.client.meta.endpoint_url)

    def key(self, path: str) -> str:
        """The key of a file in the bucket.

        Raises:
            StoreError: The path is absolute or leaves the store.
        """
        return self._prefix + str(self.relative(path))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="s3")

    def _reader(self, path: str) -> ObjectReader:
        return ObjectReader(self.client, self.bucket, self.key(path), self._pool)

    def _head(self, path: str) -> dict[str, Any]:
        with self._explained(path):
            return self.client.head_object(Bucket=self.bucket, Key=self.key(path))

    def _recorded(self, path: str, head: dict[str, Any]) -> FileRecord:
        digest = head["Metadata"].get(_DIGEST_KEY)
        if digest is None:  # written by another program
            hashed = hashlib.sha256()
            for chunk in self.stream(path):
                hashed.update(chunk)
            digest = hashed.hexdigest()
        return FileRecord(bytes=head["ContentLength"], sha256=digest)

    def _put(self, data: bytes, path: str, **conditions: str) -> None:
        digest = hashlib.sha256(data)
        self.client.put_object(
            Bucket=self.bucket,
            Key=self.key(path),
            Body=io.BytesIO(data),
            Metadata={_DIGEST_KEY: digest.hexdigest()},
            ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
            **conditions,
        )
        usage.written(len(data))

    def _require_listing(self, page: dict[str, Any]) -> None:
        """Tells an answer from any other page, which the client takes for an empty listing."""
        if "IsTruncated" not in page:
            raise StoreError(f"s3://{self.bucket}", explain(ResponseParserError(), self.endpoint))

    def _abort(self, key: str, upload: str) -> None:
        self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except RangeError as error:
            raise StoreError(self.full_address(path), str(error)) from error
        except _FAILURES as error:
            where, cause = f"s3://{self.bucket}", explain(error, self.endpoint)
            if path:
                where = self.full_address(path) if _is_missing(error) else f"{where}: {path}"
            elif _is_missing(error):
                cause = f"there is no such bucket at {self.endpoint}"
            raise StoreError(where, cause) from error
        except OSError as error:
            if error.filename is None:
                raise
            # Also a token that the environment names, which the client reads when it needs it.
            raise StoreError(f"s3://{self.bucket}", f"{error.filename}: {error.strerror}") from None


def connect() -> Any:
    """An S3 client by what the environment says.

    Raises:
        InvalidInputError: The environment's settings make no sense.
    """

    def build(s3: dict[str, str]) -> Any:
        return session.client("s3", config=Config(**_CLIENT, s3=s3))

    try:
        # boto3 itself reads AWS_DEFAULT_REGION only.
        session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
        style = os.environ.get(ADDRESSING_VARIABLE)
        if style:
            return build({"addressing_style": style})
        client = build({})
        if ".amazonaws.com" in client.meta.endpoint_url:
            return client
        return build({"addressing_style": "path"})
    except (BotoCoreError, ValueError) as error:
        raise InvalidInputError.one("S3 client", str(error), "check the AWS_* variables") from None


def _is_missing(error: BaseException | None) -> bool:
    return isinstance(error, ClientError) and code_of(error) in MISSING
