"""Runs each step as a container of its image, by the docker command.

The container is locked down as a pod of the pipeline is: no capabilities, a root file
system that cannot be written, and no network unless what the step needs is elsewhere. It sees the
folders that it works in under the paths that they have here, and nothing else of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any

from components._images import IMAGE_VARIABLE
from pipelines.local.access import Access, access_of
from pipelines.local.calls import Call
from quantlib.errors import InvalidInputError, Problem, QuantlibError, StepError
from quantlib.publishing.oci.auth import CONFIG_VARIABLE
from quantlib.runtime.keeper import kept

RUN_LABEL = "org.quantlib.run"
"""Label of every container; its value is the folder of the run."""

_SHARED_MEMORY = "1g"  # a limit; vLLM passes tensors between its processes in it
_SECRETS = re.compile(r"AWS_(?!.*_FILE$|CA_BUNDLE$)\w+|HF_(TOKEN|ENDPOINT)")
"""Variables for steps that use the network. Those that name files here are of no use there."""

_SETTINGS = re.compile(r"QUANTLIB_(?!IMAGE$|VALIDATE_IMAGE$|WATCH_IMAGE$|SIGNING)\w+")


def docker_arguments(
    call: Call,
    access: Access,
    container: str,
    *,
    user: tuple[int, int],
    scratch: Path,
    network: str,
    grace: float,
    environment: Mapping[str, str],
) -> list[str]:
    """The arguments of ``docker`` that create the container of a step.

    Args:
        call: The step.
        access: What it may reach.
        container: Name of the container.
        user: UID and GID that it runs as.
        scratch: Folder that is its ``/scratch``.
        network: Network of steps that need one.
        grace: Seconds between SIGTERM and SIGKILL.
        environment: The caller's environment. Credentials are passed on by name: docker takes the
            value itself, and no list of processes shows it.
    """
    names = [name for name in sorted(environment) if _SETTINGS.fullmatch(name)]
    if access.network:
        names += [name for name in sorted(environment) if _SECRETS.fullmatch(name)]
    variables = {
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", str(call.threads)),
        IMAGE_VARIABLE: call.image,
        **call.environment,
    }
    writable = [call.folder]
    writable += [path for path in (access.store, access.destination) if path]
    read = [*access.read, access.credentials] if access.credentials else access.read
    if access.credentials:
        variables[CONFIG_VARIABLE] = str(access.credentials.parent)
    mounts = {path: _mount(path, path, read_only=True) for path in read}
    mounts |= {path: _mount(path, path) for path in writable}
    command, *arguments = call.argv
    return [
        # --init: as process 1 a step would not get SIGTERM before it has a handler for it.
        *("create", "--name", container, "--pull", "never", "--init"),
        *("--label", f"{RUN_LABEL}={call.folder.parent}"),
        *("--user", f"{user[0]}:{user[1]}", "--read-only", "--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges"),
        *("--network", network if access.network else "none"),
        *("--cpus", str(call.threads), "--shm-size", _SHARED_MEMORY),
        # In quotes of its own: docker reads the value as CSV.
        *(("--gpus", f'"device={",".join(call.gpus)}"') if call.gpus else ()),
        *("--stop-timeout", str(round(grace)), "--log-driver", "none"),
        *("--tmpfs", "/tmp", "--mount", _mount(scratch, Path("/scratch"))),
        *(word for path in sorted(mounts) for word in ("--mount", mounts[path])),
        *("--workdir", str(Path.cwd())),  # relative paths in a recipe mean the same there
        *(word for name in names for word in ("--env", name)),
        *(word for item in variables.items() for word in ("--env", "=".join(item))),
        *("--entrypoint", command, call.image, *arguments),
    ]


class DockerRunner:
    """Each step is a container, which is removed when the step ends.

    The containers run as the user who calls, root too: without capabilities root can do there what
    any owner of its files can. So nothing has to change hands: what lies in a store may be a hard
    link to a file of somebody's model.

    Attributes:
        network: Docker network of the steps that need one. ``host`` lets them reach servers on this
            machine's loopback address.
        grace: Seconds between SIGTERM and SIGKILL for a step that is cancelled.
    """

    def __init__(self, network: str = "bridge", grace: float = 20.0) -> None:
        self.network = network
        self.grace = grace
        self._user = (os.getuid(), os.getgid())
        self._prepared: set[Path] = set()

    async def require(self, images: Collection[str]) -> None:
        """Checks that there is an engine that has the images.

        Raises:
            QuantlibError: There is no engine.
            InvalidInputError: It lacks images.
        """
        code, _, error = await _docker("version", "--format", "{{.Server.Version}}")
        if code:
            raise QuantlibError(
                f"docker: no engine answers: {error}; start one, or use --runner process"
            )
        missing = [
            image for image in sorted(images) if (await _docker("image", "inspect", image))[0]
        ]
        if missing:
            remedy = "build it with `make images`, or pull it with `docker pull`"
            raise InvalidInputError(
                Problem(f"image {image}", "is not on this machine", remedy) for image in missing
            )

    async def run(self, call: Call) -> int:
        """Runs a step, with its output appended to ``call.log``."""
        access = access_of(call)
        await self._prepare(call, access)
        name = f"quantlib-{uuid.uuid4().hex[:12]}"
        scratch = call.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        arguments = docker_arguments(
            call,
            access,
            name,
            user=self._user,
            scratch=scratch,
            network=self.network,
            grace=self.grace,
            environment=os.environ,
        )
        try:
            code, _, error = await _finish(_docker(*arguments))
            if code:
                raise StepError(call.name, f"its container cannot be created: {error}")
            return await self._attend(call, name)
        finally:
            await _finish(_docker("rm", "--force", "--volumes", name))
            shutil.rmtree(scratch, ignore_errors=True)

    async def _attend(self, call: Call, container: str) -> int:
        """Starts a container and waits for its end."""
        removal = ["docker", "rm", "--force", "--volumes", container]
        with call.log.open("ab") as log:
            # In a session of its own, so that Ctrl-C reaches this program alone; when this program
            # is killed, the keeper removes the container.
            client = await asyncio.create_subprocess_exec(
                *kept(["docker", "start", "--attach", container], self.grace, removal),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            await client.wait()
        except asyncio.CancelledError:
            # A second cancellation, by a second Ctrl-C, ends the wait as the grace period does.
            with contextlib.suppress(asyncio.CancelledError):
                await _docker("stop", "--time", str(round(self.grace)), container)
                await client.wait()
            raise
        finally:
            await _end(client)
        # The client's exit code may be its own; and it may have lost its connection.
        await _docker("wait", container)
        code, output, error = await _docker("inspect", "--format", "{{json .State}}", container)
        if code:
            raise StepError(call.name, f"its container is lost: {error}")
        state = json.loads(output)
        if state["Status"] == "created":
            raise StepError(call.name, f"its container cannot be started: {state['Error']}")
        return state["ExitCode"]

    async def _prepare(self, call: Call, access: Access) -> None:
        """Does once for every folder what it needs before a container may use it."""
        run = call.folder.parent
        if run not in self._prepared:
            # A runner that was killed together with its keepers leaves containers.
            label = f"label={RUN_LABEL}={run}"
            _, left, _ = await _docker("ps", "--all", "--quiet", "--filter", label)
            if left:
                await _docker("rm", "--force", "--volumes", *left.split())
        for folder in (access.store, access.destination):
            if folder and folder not in self._prepared:
                folder.mkdir(parents=True, exist_ok=True)
                self._require_writable(call.name, folder)
        self._prepared |= {path for path in (run, access.store, access.destination) if path}

    def _require_writable(self, step: str, folder: Path) -> None:
        """Without capabilities, root too writes only where the permissions allow it."""
        user, group = self._user
        status = folder.stat()
        if status.st_uid == user:
            writable = status.st_mode & stat.S_IWUSR
        elif status.st_gid == group:
            writable = status.st_mode & stat.S_IWGRP
        else:
            writable = status.st_mode & stat.S_IWOTH
        if not writable:
            raise StepError(
                step,
                f"{folder} belongs to user {status.st_uid}, and the containers run as user {user}: "
                f"run as its owner, or give another folder",
            )


async def _docker(*arguments: str) -> tuple[int, str, str]:
    """Runs ``docker``; its exit code, output and error output."""
    try:
        process = await asyncio.create_subprocess_exec(
            "docker",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise QuantlibError(f"docker cannot be started: {error.strerror}") from None
    try:
        output, errors = await process.communicate()
    finally:
        await _end(process)
    assert process.returncode is not None
    return process.returncode, output.decode().strip(), errors.decode().strip()


async def _end(client: asyncio.subprocess.Process) -> None:
    """Ends a client that nobody waits for any more; what it asked of the engine goes on."""
    with contextlib.suppress(ProcessLookupError):
        client.kill()
    await client.wait()


async def _finish(work: Coroutine[Any, Any, tuple[int, str, str]]) -> tuple[int, str, str]:
    """Awaits work to its end even when cancelled, and then is cancelled."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


def _mount(source: Path, target: Path, *, read_only: bool = False) -> str:
    """A bind mount in docker's notation, which is a line of CSV."""
    fields = ["type=bind", f"source={source}", f"target={target}"]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([*fields, *(["readonly"] if read_only else [])])
    return line.getvalue()
