"""Uploads and starts pipelines on a Kubeflow Pipelines server, over kfp's client."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.kubeflow.retries import asks_for_retries, note_on_retries, policy_of_run
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.runtime.code_version import code_version
from quantlib.runtime.distribution import needing

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
UI_HOST_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
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
    409: "has something of this name already; give another one",
    503: "is not ready; try again",
}
_REASON_LENGTH = 500
_ACCOUNT = "quantlib-runner"


@dataclass(frozen=True)
class Server:
    """A server and what runs are started with.

    Attributes:
        host: Its address, such as ``http://127.0.0.1:8080``.
        namespace: The profile's namespace; empty where the server has no profiles.
        experiment: What groups the runs.
        service_account: What the runs' pods are. Empty: ``quantlib-runner`` in a profile's
            namespace, where our manifests make it; elsewhere the server's default.
        ui_host: The address of the user interface, for links; empty where it is the same.
    """

    host: str
    namespace: str = ""
    experiment: str = "quantize"
    service_account: str = ""
    ui_host: str = ""


@dataclass(frozen=True)
class Uploaded:
    """A version of a pipeline on a server.

    Attributes:
        pipeline: The pipeline's id.
        version: The version's id.
        name: The version's name.
        is_new: Whether it was not there before.
    """

    pipeline: str
    version: str
    name: str
    is_new: bool


class Kubeflow:
    """A Kubeflow Pipelines server.

    Raises:
        InvalidInputError: No address is known, or a namespace is given where there are no profiles.
        QuantlibError: kfp is not installed, or the server cannot be reached, or refuses.
    """

    def __init__(self, server: Server) -> None:
        if not server.host:
            raise InvalidInputError.one(
                "--host", "is missing", f"give the server's address, or set {HOST_VARIABLE}"
            )
        self._server = server
        self._token = os.environ.get(TOKEN_VARIABLE) or _token_of_pod()
        with needing("pipelines", "kfp"):
            import kfp
        with self._explained():
            health = self._health()
            self._version, self._has_profiles = health.get("tag_name"), health.get("multi_user")
            if server.namespace and self._has_profiles is False:
                raise InvalidInputError.one(
                    f"--namespace {server.namespace}",
                    f"is of no use: Kubeflow at {server.host} has no profiles",
                    "leave it out",
                )
            with warnings.catch_warnings():  # that it is no client of Kubeflow 1
                warnings.simplefilter("ignore", FutureWarning)
                self._client = kfp.Client(
                    host=server.host,
                    namespace=server.namespace or "kubeflow",
                    existing_token=self._token,
                )

    def upload(self, file: Path, name: str, version: str = "") -> Uploaded:
        """Uploads a compiled pipeline as a version, unless it is there already.

        The pipeline is made where the namespace has none of this name. A version is called as the
        code is, with the first digits of the file's digest: images, profile and recipes are in it.

        Raises:
            InvalidInputError: There is a version of this name with other content.
        """
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        # A name of Kubernetes, for a Kubeflow that keeps pipelines there, which takes no plus.
        version = version or f"{code_version().replace('+', '-')}-{digest[:8]}"
        with self._explained():
            pipeline = self._pipeline(name) or self._new_pipeline(name, file)
            found = self._client.list_pipeline_versions(pipeline, filter=_named(version))
            if not found.pipeline_versions:
                made = self._client.upload_pipeline_version(
                    str(file),
                    version,
                    pipeline_id=pipeline,
                    description=f"Code {code_version()}, file sha256:{digest}",
                )
                return Uploaded(pipeline, made.pipeline_version_id, version, is_new=True)
        (there,) = found.pipeline_versions
        if digest not in (there.description or ""):
            raise InvalidInputError.one(
                f"version {version} of pipeline {name}",
                f"is at {self._server.host} already, with other content",
                "name this one with --version",
            )
        return Uploaded(pipeline, there.pipeline_version_id, version, is_new=False)

    def note_on_retries(self, file: Path) -> str:
        """A line to print where a compiled pipeline asks for retries that it may not get.

        The newest run tells what Argo goes by here. Without one, the version has to do.
        """
        from kfp_server_api.exceptions import ApiException

        if not asks_for_retries(_specification(file)):
            return ""
        policy = None
        with self._explained(), contextlib.suppress(ApiException):  # who uploads need not see runs
            listed = self._client.list_runs(
                page_size=1, sort_by="created_at desc", namespace=self._server.namespace or None
            )
            for run in listed.runs or ():
                policy = policy_of_run(json.loads(self._get(f"/apis/v1beta1/runs/{run.run_id}")))
        return note_on_retries(self._version or "", policy)

    def run(self, file: Path, parameters: Mapping[str, Any], name: str) -> str:
        """Starts a run of a compiled pipeline; returns the address of its page."""
        with self._explained():
            experiment = self._experiment()
            run = self._client.run_pipeline(
                experiment,
                name,
                pipeline_package_path=str(file),
                params=dict(parameters),
                service_account=self._account(),
            )
            return self._page(run.run_id)

    def running(self, mark: str) -> str:
        """The address of a run that has not ended and whose name holds ``mark``, or nothing."""
        predicate = {"operation": "IS_SUBSTRING", "key": "display_name", "stringValue": mark}
        with self._explained():
            listed = self._client.list_runs(
                page_size=100,
                sort_by="created_at desc",
                namespace=self._profile(),
                filter=json.dumps({"predicates": [predicate]}),
            )
            found = [run.run_id for run in listed.runs or () if run.state in _RUNNING]
        return self._page(found[0]) if found else ""

    def schedule(self, file: Path, parameters: Mapping[str, Any], name: str, cron: str) -> str:
        """Starts a run again and again, one at a time, none for times that were missed.

        ``cron`` is as :func:`check_cron` takes it. Returns the id of the recurring run.
        """
        with self._explained():
            job = self._client.create_recurring_run(
                self._experiment(),
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                pipeline_package_path=str(file),
                params=dict(parameters),
                service_account=self._account(),
            )
            return str(job.recurring_run_id)

    def _pipeline(self, name: str) -> str:
        """The id of the pipeline of this name in the namespace, or nothing.

        The SDK's own ``get_pipeline_id`` looks among those that all namespaces share.
        """
        listed = self._client.list_pipelines(
            namespace=self._server.namespace or None, filter=_named(name)
        )
        return listed.pipelines[0].pipeline_id if listed.pipelines else ""

    def _new_pipeline(self, name: str, file: Path) -> str:
        """Makes a pipeline without versions: the SDK's way names the first one as the pipeline."""
        made = self._client.pipelines.pipeline_service_create_pipeline(
            self._client.api_models.V2beta1Pipeline(
                display_name=name,
                description=_specification(file)["pipelineInfo"].get("description"),
                namespace=self._server.namespace or None,
            )
        )
        return str(made.pipeline_id)

    def _page(self, run: str) -> str:
        host = self._server.ui_host or self._server.host
        with_scheme = host if "://" in host else f"http://{host}"
        return f"{with_scheme.rstrip('/')}/#/runs/details/{run}"

    def _account(self) -> str | None:
        return self._server.service_account or (_ACCOUNT if self._server.namespace else None)

    def _profile(self) -> str | None:
        """The namespace that runs are in, None where there are no profiles."""
        if self._has_profiles and not self._server.namespace:
            raise InvalidInputError.one(
                "--namespace",
                f"is missing: Kubeflow at {self._server.host} has profiles",
                "give the namespace of yours",
            )
        return self._server.namespace or None

    def _experiment(self) -> str:
        experiment = self._client.create_experiment(
            self._server.experiment, namespace=self._profile()
        )
        return str(experiment.experiment_id)

    def _health(self) -> dict[str, Any]:
        """What the server says of itself.

        Asked once: kfp's client would ask for half a minute and forget what it was answered. Nor
        does it tell a login page from an answer.
        """
        answer = self._get("/apis/v2beta1/healthz")
        try:
            health = json.loads(answer)
        except ValueError:
            health = None
        if not isinstance(health, dict):
            raise self._login_before("answers with a page for people")
        return health

    def _get(self, path: str) -> bytes:
        """The answer to a plain request."""
        import urllib3
        from kfp_server_api.exceptions import ApiException

        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        with urllib3.PoolManager(timeout=_TIMEOUT_SECONDS, retries=False) as http:
            url = f"{self._server.host.rstrip('/')}{path}"
            answer = http.request("GET", url, headers=headers, redirect=False)
        if answer.status >= 400:
            error = ApiException(status=answer.status, reason=answer.reason)
            error.body = answer.data
            raise error
        if answer.status >= 300:
            raise self._login_before(f"sends to {answer.headers.get('Location', 'elsewhere')}")
        return answer.data

    def _login_before(self, answer: str) -> QuantlibError:
        return QuantlibError(
            f"Kubeflow at {self._server.host} {answer}, as for a login; check --host, or set "
            f"{TOKEN_VARIABLE}",
        )

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
            raise QuantlibError(f"{where} {meaning}{_detail(error.body)}") from None
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise QuantlibError(
                f"{where} cannot be reached ({type(error).__name__}); check --host"
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


def _specification(file: Path) -> dict[str, Any]:
    specification: dict[str, Any] = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    return specification


def _named(name: str) -> str:
    """The filter of the API for one name."""
    predicate = {"operation": "EQUALS", "key": "name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _detail(body: Any) -> str:
    """The server's own reason: ``message``, or ``error_message`` where it answers uploads."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        answer = json.loads(text)
        given = ("message", "error_message", "error_details")
        text = next((answer[name] for name in given if answer.get(name)), "")
    except (ValueError, AttributeError):
        if text.lstrip().startswith("<"):  # a proxy's page
            return ""
    reason = " ".join(str(text).split())
    if len(reason) > _REASON_LENGTH:  # the cause stands at the end of Kubeflow's chains
        reason = f"{reason[:150]} … {reason[-350:]}"
    return f": {reason}" if reason else ""
