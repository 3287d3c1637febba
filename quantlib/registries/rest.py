"""Asks a registry's REST API, in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2

from quantlib.errors import QuantlibError
from quantlib.runtime.foreign_json import parse_mapping

_SECONDS = 20.0


class RegistryError(QuantlibError):
    """A registry could not be told.

    Attributes:
        status: Of its answer; None where there was none.
    """

    def __init__(self, what: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(what)


class Rest:
    """A server below one address.

    Args:
        url: The address.
        authorization: Value of the header of this name; None for none.
    """

    def __init__(self, url: str, authorization: str | None = None) -> None:
        headers = {"Authorization": authorization} if authorization else {}
        self._url = url.rstrip("/")
        self._http = httpx2.Client(timeout=_SECONDS, headers=headers, follow_redirects=True)

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        parameters: Mapping[str, str] | None = None,
        missing: tuple[int, ...] = (),
    ) -> dict[str, Any] | None:
        """One request.

        Args:
            method: GET, POST, PUT or PATCH.
            path: Below the address.
            body: Sent as JSON; bytes as they are.
            parameters: Of the query.
            missing: Statuses that say that there is none.

        Returns:
            The answer; None for one of ``missing``.

        Raises:
            RegistryError: It answers anything but success, or not at all.
        """
        sent: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        try:
            answer = self._http.request(
                method, f"{self._url}/{path}", params=parameters, **(sent if body else {})
            )
        except httpx2.HTTPError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RegistryError(f"no answer ({reason})") from None
        if answer.status_code in missing:
            return None
        if not answer.is_success:
            said = " ".join(answer.text.split())[:300]
            raise RegistryError(f"it answers {answer.status_code} {said}", answer.status_code)
        return parse_mapping(answer.content, path) if answer.content.strip() else {}
