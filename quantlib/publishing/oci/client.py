"""One repository of a registry, by the OCI distribution protocol.

https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md. Blobs travel in one request
each, read from where they lie while they are sent, and only where the registry has none of that
digest; what fails on the way is tried again from its start.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpx2

from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.publishing.oci.address import ImageAddress
from quantlib.publishing.oci.auth import authorize, find_credentials
from quantlib.runtime.foreign_json import parse_mapping

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ACCEPTED = (
    INDEX,
    MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_MAX_MANIFEST_BYTES = 4 << 20  # registries take no larger ones
_TIMEOUT = httpx2.Timeout(60, read=300)
_TRIES = 4
_PAUSE_SECONDS = 1.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})

Content = Callable[[], Iterator[bytes | bytearray]]
"""Gives the bytes of a blob from its start, as often as it is asked."""


@dataclass(frozen=True)
class Document:
    """A manifest or an index of manifests, as the registry holds it."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        """By which it is pulled."""
        return digest_of(self.data)

    def parsed(self, where: str) -> dict[str, Any]:
        """Its content.

        Raises:
            InvalidInputError: It is no JSON object.
        """
        return parse_mapping(self.data, where)


def digest_of(data: bytes) -> str:
    """``sha256:`` and the digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Repository:
    """A repository; nothing is asked of it yet.

    Every method raises InvalidInputError where it is not open to these credentials, and StoreError
    where the registry cannot be reached or fails.

    Args:
        address: Of the repository.
        actions: What is going to be done there, as registries call it; the rarest right last.
    """

    def __init__(self, address: ImageAddress, actions: str = "pull,push") -> None:
        self.address = address
        self._actions = actions
        self._most = actions.rpartition(",")[2]
        self._http = httpx2.Client(timeout=_TIMEOUT, follow_redirects=True)
        self._authorization: str | None = None

    def push_problems(self) -> list[Problem]:
        """Why nothing can be pushed: an upload is begun, and taken back."""
        try:
            begun = self._ask("POST", "blobs/uploads/")
            where = self._location(begun)
            self._http.delete(where, headers=self._headers(where))
        except (InvalidInputError, StoreError) as error:
            where = str(self.address)
            return list(getattr(error, "problems", ())) or [Problem(where, str(error))]
        except httpx2.HTTPError:
            pass  # registries end abandoned uploads themselves
        return []

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is there."""
        return self._ask("HEAD", f"blobs/{digest}", missing=True).status_code != 404

    def push_blob(self, digest: str, size: int, content: Content) -> bool:
        """Sends a blob that is not there yet.

        Args:
            digest: Of the content; the registry takes nothing else under it.
            size: Its bytes.
            content: Is read while it is sent.

        Returns:
            Whether it was sent.
        """
        if self.has_blob(digest):
            return False
        for attempt in range(_TRIES):
            begun = self._ask("POST", "blobs/uploads/")
            where = self._location(begun)
            url = httpx2.URL(where).copy_merge_params({"digest": digest})
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size),
                **self._headers(where),
            }
            try:
                sent = self._http.put(url, headers=headers, content=_as_bytes(content()))
            except httpx2.TransportError as error:
                failure = str(error) or type(error).__name__
            else:
                if sent.is_success:
                    return True
                failure = _reason(sent)
                if sent.status_code not in _PASSING | {401, 404}:  # 404: the upload was forgotten
                    break
            if attempt + 1 < _TRIES:
                time.sleep(_PAUSE_SECONDS * 2**attempt)
        raise StoreError(str(self.address), f"blob {digest[:19]}… was not taken: {failure}")

    def blob(self, digest: str, most: int) -> bytes:
        """A small blob.

        Args:
            digest: Of the blob.
            most: Bytes that it may have; more are not read.
        """
        data = b"".join(self.blob_chunks(digest, most))
        if digest_of(data) != digest:
            raise StoreError(self.address.at(digest), "the registry gave another content")
        return data

    def blob_chunks(self, digest: str, most: int | None = None) -> Iterator[bytes]:
        """A blob from start to end."""
        with self._reaching(), self._stream(f"blobs/{digest}") as response:
            size = 0
            for chunk in response.iter_bytes(1 << 20):
                size += len(chunk)
                if most is not None and size > most:
                    raise StoreError(self.address.at(digest), f"holds more than {most} bytes")
                yield chunk

    def document(self, reference: str) -> Document | None:
        """A manifest or index by tag or digest; None where there is none."""
        headers = {"Accept": ", ".join(_ACCEPTED)}
        answer = self._ask("GET", f"manifests/{reference}", headers=headers, missing=True)
        if answer.status_code == 404:
            return None
        if len(answer.content) > _MAX_MANIFEST_BYTES:
            raise StoreError(f"{self.address} {reference}", "is too large for a manifest")
        document = Document(answer.content, answer.headers.get("Content-Type", ""))
        if ":" in reference and document.digest != reference:
            raise StoreError(self.address.at(reference), "the registry gave another content")
        return document

    def put_document(self, reference: str, document: Document) -> None:
        """Names a manifest or index by a tag, or by its digest."""
        headers = {"Content-Type": document.media_type}
        self._ask("PUT", f"manifests/{reference}", headers=headers, content=document.data)

    def delete_document(self, digest: str) -> None:
        """Removes a manifest or index, and every tag of it; nothing happens where there is none."""
        self._ask("DELETE", f"manifests/{digest}", missing=True)

    def tags(self) -> list[str]:
        """All tags; none where there is no such repository yet."""
        found: list[str] = []
        path = "tags/list?n=1000"
        while path:
            answer = self._ask("GET", path, missing=True)
            if answer.status_code == 404:
                break
            listed = parse_mapping(answer.content, f"{self.address}: tags").get("tags")
            found += listed if isinstance(listed, list) else []
            path = answer.links.get("next", {}).get("url", "")
        return found

    def _ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
        *,
        missing: bool = False,
    ) -> httpx2.Response:
        """One request, repeated where that helps; an answer that is no success is an error.

        A ``path`` is below the repository, or one that the registry gave; 404 is an answer where
        what is asked for may be ``missing``.
        """
        for attempt in range(_TRIES):
            last = attempt + 1 == _TRIES
            with self._reaching(passing=not last):
                answer = self._authorized(method, self._url(path), headers or {}, content)
                if answer.is_success or (missing and answer.status_code == 404):
                    return answer
                if answer.status_code not in _PASSING or last:
                    raise self._refused(answer)
            time.sleep(_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _authorized(
        self, method: str, url: str, headers: dict[str, str], content: bytes | None
    ) -> httpx2.Response:
        answer = self._http.request(method, url, headers=headers | self._headers(), content=content)
        if answer.status_code == 401 and self._log_in(answer):
            answer = self._http.request(
                method, url, headers=headers | self._headers(), content=content
            )
        return answer

    @contextmanager
    def _stream(self, path: str) -> Iterator[httpx2.Response]:
        for again in (False, True):
            with self._http.stream("GET", self._url(path), headers=self._headers()) as answer:
                if not again and answer.status_code == 401 and self._log_in(answer):
                    continue
                if not answer.is_success:
                    answer.read()
                    raise self._refused(answer)
                yield answer
                return

    def _log_in(self, refused: httpx2.Response) -> bool:
        """Gets what the registry asks for; whether there was something to get."""
        before = self._authorization
        self._authorization = authorize(
            self._http,
            refused.headers.get("WWW-Authenticate", ""),
            find_credentials(self.address.registry),
            f"repository:{self.address.repository}:{self._actions}",
        )
        return self._authorization is not None and self._authorization != before

    def _headers(self, url: str | None = None) -> dict[str, str]:
        """What says who asks; nothing to another server, where a registry may have sent us."""
        own = url is None or httpx2.URL(url).netloc == httpx2.URL(self.address.url).netloc
        return {"Authorization": self._authorization} if self._authorization and own else {}

    def _url(self, path: str) -> str:
        return urljoin(f"{self.address.url}/v2/{self.address.repository}/", path)

    def _location(self, answer: httpx2.Response) -> str:
        return urljoin(str(answer.url), answer.headers.get("Location", ""))

    @contextmanager
    def _reaching(self, *, passing: bool = False) -> Iterator[None]:
        """Says which registry does not answer; nothing where another try follows."""
        try:
            yield
        except httpx2.TransportError as error:
            if passing:
                return
            reason = " ".join(str(error).split()) or type(error).__name__
            what = f"no answer from {self.address.url} ({reason}); check its name and the network"
            raise StoreError(str(self.address), what) from None
        except httpx2.HTTPError as error:
            raise StoreError(str(self.address), str(error)) from None

    def _refused(self, answer: httpx2.Response) -> Exception:
        if answer.status_code in (401, 403):
            return InvalidInputError.one(
                str(self.address),
                f"the registry refuses access: {_reason(answer)}",
                f"`docker login {self.address.registry}` as somebody who may {self._most} there",
            )
        said = f"the registry answers {_reason(answer)}"
        if answer.status_code == 405:
            said += ", so it removes nothing for its clients: remove the image by its own means"
        return StoreError(str(self.address), said)


def _as_bytes(chunks: Iterator[bytes | bytearray]) -> Iterator[bytes]:
    for chunk in chunks:
        yield bytes(chunk)


def _reason(answer: httpx2.Response) -> str:
    """The status, and what the registry says of it."""
    try:
        errors = answer.json()["errors"]
        said = "; ".join(f"{each['code']}: {each.get('message', '')}".strip() for each in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        said = answer.reason_phrase
    return f"{answer.status_code} {said[:300]}".strip()
