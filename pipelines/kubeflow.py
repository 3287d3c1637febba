"""Uploads and starts pipelines on a Kubeflow Pipelines server, over kfp's client."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.errors import InvalidInputError, StepError
from quantlib.runtime.code_version import code_version

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
TOKEN_VARIABLE = "KF_PIPELINES_TOKEN"
TOKEN_FILE = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubeflow's SDK looks for a pod's own token; only without a host, which ours always has."""

_RUNNING = ("PENDING", "RUNNING", "PAUSED", "CANCELING")
_TIMEOUT_SECONDS = 20.0
_CRON_FIELDS = ("second", "minute", "hour", "day of month", "month", "day of week")
_CRON_FIELD = re.compile(r"[\d*/,\-?A-Za-z]+")
_REFUSALS = {
    400: "refuses what it was sent",
    401: f"does not know who asks; set {TOKEN_VARIABLE} to a token for it, or mount one at "
    f"{TOKEN_FILE}",
    403: "does not allow it; ask for the rights to start runs in the namespace",
    404: "does not know this address or object; check --host and --namespace",
    409: "has something of this name already",
    503: "is not ready; try again",
}


@dataclass(frozen=True)
class Server:
    """A server and what runs are started with.

    Attributes:
        host: Its address, such as ``http://127.0.0.1:8080``.
        namespace: The profile's namespace; empty where the server has no profiles.
        experiment: What groups the runs.
        service_account: What the runs' pods are; empty for the server's default.
    """

    host: str
    namespace: str = ""
    experiment: str = "quantize"
    service_account: str = "quantlib-runner"


class Kubeflow:
    """A Kubeflow Pipelines server.

    Args:
        server: Where it is.

    Raises:
        InvalidInputError: No address is known.
        StepError: It cannot be reached, or it refuses.
    """

    def __init__(self, server: Server) -> None:
        if not server.host:
            raise InvalidInputError.one(
                "--host", "is missing", f"give the server's address, or set {HOST_VARIABLE}"
            )
        self._server = server
        token = os.environ.get(TOKEN_VARIABLE) or _token_of_pod()
        with self._explained():
            self._require_healthy(token)
            import kfp

            self._client = kfp.Client(
                host=server.host,
                namespace=server.namespace or "kubeflow",
                existing_token=token,
            )

    def upload(self, file: Path, name: str, version: str = "") -> tuple[str, str]:
        """Uploads a compiled pipeline, or a new version of one that is there.

        Args:
            file: The compiled pipeline.
            name: Of the pipeline.
            version: Of the version; the code's by default.

        Returns:
            The ids of the pipeline and of the version.
        """
        with self._explained():
            known = self._client.get_pipeline_id(name)
            if known is None:
                pipeline = self._client.upload_pipeline(
                    str(file), name, namespace=self._server.namespace or None
                )
                versions = self._client.list_pipeline_versions(pipeline.pipeline_id)
                return pipeline.pipeline_id, versions.pipeline_versions[0].pipeline_version_id
            uploaded = self._client.upload_pipeline_version(
                str(file), version or code_version(), pipeline_id=known
            )
            return known, uploaded.pipeline_version_id

    def run(self, file: Path, parameters: Mapping[str, Any], name: str) -> str:
        """Starts a run of a compiled pipeline; returns the address of its page."""
        with self._explained():
            experiment = self._experiment()
            run = self._client.run_pipeline(
                experiment,
                name,
                pipeline_package_path=str(file),
                params=dict(parameters),
                service_account=self._server.service_account or None,
            )
            return self._page(run.run_id)

    def running(self, mark: str) -> str:
        """The address of a run that has not ended and whose name holds ``mark``, or nothing."""
        predicate = {"operation": "IS_SUBSTRING", "key": "display_name", "stringValue": mark}
        with self._explained():
            listed = self._client.list_runs(
                page_size=100,
                sort_by="created_at desc",
                namespace=self._server.namespace or None,
                filter=json.dumps({"predicates": [predicate]}),
            )
            found = [run.run_id for run in listed.runs or () if run.state in _RUNNING]
        return self._page(found[0]) if found else ""

    def schedule(self, file: Path, parameters: Mapping[str, Any], name: str, cron: str) -> str:
        """Starts a run again and again, one at a time, none for times that were missed.

        Args:
            file: The compiled pipeline.
            parameters: Of each run.
            name: Of the schedule.
            cron: Six fields: second, minute, hour, day of month, month, day of week.

        Returns:
            The id of the recurring run.
        """
        check_cron(cron)
        with self._explained():
            job = self._client.create_recurring_run(
                self._experiment(),
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                pipeline_package_path=str(file),
                params=dict(parameters),
                service_account=self._server.service_account or None,
            )
            return str(job.recurring_run_id)

    def _page(self, run: str) -> str:
        return f"{self._server.host.rstrip('/')}/#/runs/details/{run}"

    def _require_healthy(self, token: str | None) -> None:
        """Asks once: kfp's client would ask for half a minute and forget what it was answered.

        Nor does it tell a login page from an answer.
        """
        import urllib3
        from kfp_server_api.exceptions import ApiException

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with urllib3.PoolManager(timeout=_TIMEOUT_SECONDS, retries=False) as http:
            url = f"{self._server.host.rstrip('/')}/apis/v2beta1/healthz"
            answer = http.request("GET", url, headers=headers, redirect=False)
        if answer.status >= 400:
            error = ApiException(status=answer.status, reason=answer.reason)
            error.body = answer.data
            raise error
        try:
            healthy = answer.status < 300 and isinstance(json.loads(answer.data), dict)
        except ValueError:
            healthy = False
        if not healthy:
            elsewhere = answer.headers.get("Location")
            raise StepError(
                "upload",
                f"Kubeflow at {self._server.host} "
                + (f"sends to {elsewhere}" if elsewhere else "answers with a page for people")
                + f", as for a login; check --host, or set {TOKEN_VARIABLE}",
            )

    def _experiment(self) -> str:
        experiment = self._client.create_experiment(
            self._server.experiment, namespace=self._server.namespace or None
        )
        return str(experiment.experiment_id)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the client as one line with the server and the cause."""
        import urllib3.exceptions
        from kfp_server_api.exceptions import ApiException

        where = f"Kubeflow at {self._server.host}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # links, printed for notebooks
                yield
        except ApiException as error:
            meaning = _REFUSALS.get(error.status, f"answers {error.status} {error.reason}")
            raise StepError("upload", f"{where} {meaning}{_detail(error.body)}") from None
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise StepError(
                "upload", f"{where} cannot be reached ({type(error).__name__}); check --host"
            ) from None


def check_cron(text: str) -> None:
    """Checks that a schedule has the form that Kubeflow takes.

    Raises:
        InvalidInputError: It has not.
    """
    fields = text.split()
    if len(fields) != len(_CRON_FIELDS):
        raise InvalidInputError.one(
            f"--cron {text!r}",
            f"has {len(fields)} fields, not 6: {', '.join(_CRON_FIELDS)}",
            "every night at three: '0 0 3 * * *'",
        )
    for name, field in zip(_CRON_FIELDS, fields, strict=True):
        if not _CRON_FIELD.fullmatch(field):
            raise InvalidInputError.one(f"--cron {text!r}", f"its {name} is no field: {field!r}")


def _token_of_pod() -> str | None:
    """The token that the cluster keeps fresh in a file of the pod, or None."""
    try:
        return TOKEN_FILE.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _detail(body: Any) -> str:
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {' '.join(str(message).split())[:300]}"
