"""Where trials run: in this process, or as Ray core tasks. The study cannot tell the difference.

An executor takes a batch of signatures and returns one outcome each, in order; a trial that raises
comes back as a `Failure` and the others are unaffected. Both give the same results for the same
batch: a trial depends on nothing but its arguments.

Ray results are unpickled here, so whoever runs the Ray cluster runs code in this process: its
address comes from the chart, never from an object, and token authentication is always on.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from trimwheel_api.errors import Unavailable
from trimwheel_pipelines.settings import LOCAL_RAY, Settings
from trimwheel_pipelines.trials import ModelRef, Search, TrialResult, run_trial
from trimwheel_workers.model.config import Signature

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 * 2**20
"""Inputs and scores of a study are megabytes; Ray's default would take a third of the memory."""
_SOCKET_PATH_ROOM = 40
"""Ray's own part of a Unix socket path takes the rest of the 107 characters there are."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial that raised."""

    signature: Signature
    reason: str


Outcome = TrialResult | Failure


class Executor(Protocol):
    """Runs trials. Use as a context manager: entering starts what is needed, leaving stops it."""

    name: str
    slots: int
    """Trials that run at the same time."""

    def run(
        self, search: Search, signatures: Sequence[Signature], until: float = math.inf
    ) -> Iterable[Outcome]:
        """One outcome for each signature, in order, as they end; never raises for a trial.

        Raises Unavailable when a machine elsewhere has not answered by `until` (Unix seconds).
        """
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, *failure: object) -> None: ...


class SerialExecutor:
    """One trial after another in this process."""

    name = "serial"
    slots = 1

    def run(
        self, search: Search, signatures: Sequence[Signature], until: float = math.inf
    ) -> Iterator[Outcome]:
        """See `Executor`."""
        return (_attempt(signature, search) for signature in signatures)

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *failure: object) -> None:
        """Nothing was started."""


class RayExecutor:
    """Ray core tasks, on a Ray of our own or on a cluster by address."""

    name = "ray"

    def __init__(self, address: str, cpus: int) -> None:
        """`address`: `local` starts a Ray with `cpus` processes, else that cluster is joined."""
        self.address = address
        self.slots = cpus
        self._folder: Path | None = None
        self._shared: tuple[Search, tuple[Any, ...]] | None = None

    def __enter__(self) -> RayExecutor:
        self._authenticate()
        import ray

        log.info("Starting Ray (%s, %d processes).", self.address, self.slots)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self.address == LOCAL_RAY:
                ray.init(
                    num_cpus=self.slots,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(self._folder),
                    **quiet,
                )
            else:
                ray.init(address=self.address, **quiet)
                self.slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            self._clean_up()
            # Ray Client says of a wrong token, too, that nobody answers.
            hint = "" if self.address == LOCAL_RAY else ". Check ray.address and RAY_AUTH_TOKEN"
            raise Unavailable(f"Ray at {self.address}: {error}{hint}") from error
        # System failures (a worker killed for memory) are tried once more, our exceptions never.
        task = _attempt if self.address == LOCAL_RAY else _attempt_elsewhere
        self._task = ray.remote(num_cpus=1, max_retries=1, retry_exceptions=False)(task)
        return self

    def run(
        self, search: Search, signatures: Sequence[Signature], until: float = math.inf
    ) -> Iterator[Outcome]:
        """See `Executor`. What trials share is put into the object store once a study."""
        import ray

        if self._shared is None or self._shared[0] is not search:
            shared = [search] if self.address == LOCAL_RAY else [search, _files_of(search.model)]
            self._shared = search, tuple(ray.put(one) for one in shared)
        tasks = [self._task.remote(signature, *self._shared[1]) for signature in signatures]
        for ended, (task, signature) in enumerate(zip(tasks, signatures, strict=True)):
            # A past moment still takes what is there already.
            left = None if math.isinf(until) else max(0.0, until - time.time())
            try:
                outcome: Outcome = ray.get(task, timeout=left)
            except ray.exceptions.GetTimeoutError as error:
                raise Unavailable(
                    f"Ray at {self.address}: {ended} of {len(tasks)} trials ended before the run's "
                    "deadline; is a CPU of the cluster free?"
                ) from error
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                outcome = Failure(signature, f"{type(error).__name__}: {reason}")
            yield outcome

    def __exit__(self, *failure: object) -> None:
        import ray

        self._shared = None
        ray.shutdown()
        self._clean_up()

    def _authenticate(self) -> None:
        """Token authentication, before Ray is imported: it reads its environment then.

        A local Ray gets a token of its own, in a folder only we can read; that of a cluster is in
        RAY_AUTH_TOKEN, which the chart's `pipelines.env` takes from a Secret.
        """
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if self.address != LOCAL_RAY:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="tw-", dir=_short_folder()))
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)

    def _clean_up(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def executor_of(settings: Settings) -> Executor:
    """The executor that the chart's values ask for."""
    if not settings.ray_address:
        return SerialExecutor()
    return RayExecutor(settings.ray_address, settings.ray_cpus)


def _attempt_elsewhere(signature: Signature, search: Search, files: dict[str, bytes]) -> Outcome:
    """The same on a machine that does not see our folders: the model comes along as bytes."""
    if search.model is not None:
        search = replace(search, model=_unpacked(search.model, files))
    return _attempt(signature, search)


def _files_of(model: ModelRef | None) -> dict[str, bytes]:
    folder = Path(model.folder) if model else None
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder else {}


def _unpacked(model: ModelRef, files: dict[str, bytes]) -> ModelRef:
    """The artifact in a folder of this machine, kept by digest, which loading checks."""
    name = f"trimwheel-model-{os.getuid()}-{model.digest.removeprefix('sha256:')}"
    folder = Path(tempfile.gettempdir()) / name
    if not folder.exists():
        scratch = Path(tempfile.mkdtemp(prefix=f"{name}."))
        for file, content in files.items():
            (scratch / file).write_bytes(content)
        try:
            scratch.rename(folder)
        except OSError:  # another process of this machine was faster, with the same bytes
            shutil.rmtree(scratch)
    return replace(model, folder=str(folder))


def _attempt(signature: Signature, search: Search) -> Outcome:
    """Run a trial; whatever it raises is that trial's result, since others can still be right."""
    try:
        return run_trial(search, signature)
    except Exception as error:
        log.warning("The trial of %s failed.", signature, exc_info=True)
        return Failure(signature, f"{type(error).__name__}: {error}")


def _short_folder() -> str | None:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _SOCKET_PATH_ROOM else "/tmp"
