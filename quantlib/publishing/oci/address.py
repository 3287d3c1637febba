"""How a repository of a registry is named: ``oci://registry/repository[:tag]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantlib.errors import InvalidInputError

SCHEME = "oci://"
_HOST = r"localhost|[\w-]+(\.[\w-]+)+|[\w-]+(?=:)|\[[0-9a-f:]+\]"
_REGISTRY = re.compile(rf"({_HOST})(:\d{{1,5}})?", re.ASCII)
_REPOSITORY = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_LOOPBACK = ("localhost", "127.", "[::1]")


@dataclass(frozen=True)
class ImageAddress:
    """A repository, and what in it is meant.

    Attributes:
        registry: Host, and port where one is given.
        reference: A tag, or ``sha256:`` and 64 digits; empty where none is given.
    """

    registry: str
    repository: str
    reference: str = ""

    @property
    def url(self) -> str:
        """Where the registry's API answers; without TLS on this machine only, as docker has it."""
        host = "registry-1.docker.io" if self.registry == "docker.io" else self.registry
        scheme = "http" if host.startswith(_LOOPBACK) else "https"
        return f"{scheme}://{host}"

    def at(self, digest: str) -> str:
        """The address of one image."""
        return f"{SCHEME}{self.registry}/{self.repository}@{digest}"

    def __str__(self) -> str:
        separator = "@" if ":" in self.reference else ":"
        tail = f"{separator}{self.reference}" if self.reference else ""
        return f"{SCHEME}{self.registry}/{self.repository}{tail}"


def parse_image_address(address: str) -> ImageAddress:
    """The parts of ``oci://registry/repository[:tag]``, or ``…@sha256:digest``.

    Raises:
        InvalidInputError: It is no such address.
    """
    registry, _, rest = address.removeprefix(SCHEME).partition("/")
    repository, at, digest = rest.partition("@")
    repository, colon, tag = repository.partition(":")
    if not address.startswith(SCHEME) or not _REGISTRY.fullmatch(registry):
        what = "names no registry, such as registry.example.org or localhost:5000"
    elif not _REPOSITORY.fullmatch(repository):
        what = f"{repository!r} is no name of a repository: lower case, digits, and . _ - / between"
    elif colon and not _TAG.fullmatch(tag):
        what = f"{tag!r} is no tag"
    elif at and not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        what = f"{digest!r} is no digest"
    else:
        return ImageAddress(registry, repository, digest or tag)
    raise InvalidInputError.one(address, what, "give oci://registry/repository, or with :tag")
