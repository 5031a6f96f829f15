"""MLflow: a TuningRun as an experiment run, a policy as a registered model version.

Called by `tune` (writes a run, registers the policy) and, through `promotion` and `open_runs`, by
the watch loop (moves the aliases `candidate` and `stable`, ends runs that nobody else will). A
policy is data: its canonical bytes are the artifact `policy.json`, and nothing here pickles or runs
code. MLflow away raises `Unavailable`, which callers meet with patience: serving never waits for
it. What MLflow refuses raises `Refused`. What a person deleted there and a new run needs (the
experiment, the run of a restarted Job) is restored.

Leaves out history of aliases, which MLflow does not keep: the ledger does.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trimwheel_api import names
from trimwheel_api.errors import Refused, Unavailable
from trimwheel_api.policy import Policy
from trimwheel_pipelines.knobs import Params
from trimwheel_pipelines.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

SCHEMA_TAG = "trimwheel.schema"
SHA_TAG = "sha256"
PARENT_TAG = "parent"
UID_TAG = f"{names.TAG_TUNING_RUN}.uid"
POLICY_FILE = "policy.json"
CERTIFICATE_FILE = "certificate.json"
_MLFLOW_PARENT = "mlflow.parentRunId"
_MLFLOW_NAME = "mlflow.runName"
_MLFLOW_NOTE = "mlflow.note.content"
OUTCOME_TAG = "trimwheel.outcome"
"""Tag of a run that ended without a result of its own: why."""
REMEDY = (
    "If a person deleted the experiment or the run: `mlflow experiments restore -x ID`, "
    "`mlflow runs restore --run-id ID`, then create the TuningRun again"
)
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
_SEARCH_PAGE = 1000


@dataclass(frozen=True, slots=True)
class RunRef:
    """A parent run and the page that shows it."""

    run_id: str
    experiment: str
    experiment_id: str
    url: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What is kept of one trial."""

    number: int
    params: Params
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    ended: bool  # False: it failed


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that MLflow shows as running. `uid` is its TuningRun's, empty for a nested trial."""

    run_id: str
    uid: str
    parent: str
    started: float  # Unix seconds


class Registry:
    """One MLflow. Every call raises Unavailable while it is away, Refused when it will not."""

    def __init__(self, uri: str, link: str = "") -> None:
        """`uri`: tracking address; `link`: root of pages for people, `uri` if empty."""
        # MLflow's own retries last minutes inside one call; ours are visible and can be cut short.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient

        self._client: MlflowClient = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._uri = uri
        self._link = (link or uri).rstrip("/")

    def open_run(
        self, namespace: str, model: str, run: str, uid: str, params: Mapping[str, Any]
    ) -> RunRef:
        """The parent run of a TuningRun; the same one again after a restart."""
        from mlflow.entities import LifecycleStage, ViewType

        with self._answering():
            experiment = names.experiment_name(namespace, model)
            experiment_id = self._experiment(experiment)
            found = self._client.search_runs(
                [experiment_id],
                f"tags.`{UID_TAG}` = '{uid}'",
                run_view_type=ViewType.ALL,
                max_results=1,
            )
            if found:
                run_id = found[0].info.run_id
                if found[0].info.lifecycle_stage == LifecycleStage.DELETED:
                    log.warning("MLflow run %s was deleted. Restoring it.", run_id)
                    self._client.restore_run(run_id)
                self._client.update_run(run_id, status="RUNNING")
            else:
                tags = {names.TAG_TUNING_RUN: f"{namespace}/{run}", UID_TAG: uid}
                made = self._client.create_run(experiment_id, tags=tags, run_name=run)
                run_id = made.info.run_id
                self._log_params(run_id, params)
        url = f"{self._link}/#/experiments/{experiment_id}/runs/{run_id}"
        return RunRef(run_id, experiment, experiment_id, url)

    def log_trials(self, ref: RunRef, trials: list[Trial]) -> None:
        """Nested runs; one that is there already is left as it is."""
        with self._answering():
            nested = self._client.search_runs(
                [ref.experiment_id], f"tags.`{_MLFLOW_PARENT}` = '{ref.run_id}'", max_results=10_000
            )
            known = {run.data.tags.get(_MLFLOW_NAME) for run in nested}
            for trial in trials:
                if _trial_name(trial) not in known:
                    self._log_trial(ref, trial)

    def log_results(
        self, ref: RunRef, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        """Numbers and words of the parent run."""
        with self._answering():
            for key, value in metrics.items():
                self._client.log_metric(ref.run_id, key, value)
            for key, text in tags.items():
                self._client.set_tag(ref.run_id, key, text)

    def log_figure(self, ref: RunRef, figure: Figure, name: str) -> None:
        """A plot as an artifact of the parent run."""
        with self._answering():
            self._client.log_figure(ref.run_id, figure, name)

    def log_json(self, ref: RunRef, document: Mapping[str, Any], name: str) -> None:
        """A JSON document for people, indented."""
        with self._answering():
            text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, default=str)
            self._client.log_text(ref.run_id, text + "\n", name)

    def register(self, ref: RunRef, namespace: str, model: str, policy: Policy, parent: str) -> str:
        """Store `policy.json` and make it a version of the registered policy; returns the version.

        The same one again when this run registered these bytes before. A Job that was restarted may
        find another winner: its policy lies beside the first, whose bytes a version names.
        """
        name = names.registered_policy_name(namespace, model)
        with self._answering():
            self._registered_model(name)
            versions = self._client.search_model_versions(f"name='{name}'")
            mine = [one for one in versions if one.run_id == ref.run_id]
            for one in mine:
                if one.tags.get(SHA_TAG) == policy.digest:
                    return str(one.version)
            place = f"{names.digest_label(policy.digest)}/{POLICY_FILE}" if mine else POLICY_FILE
            self._client.log_text(ref.run_id, policy.canonical_bytes().decode(), place)
            tags = {SHA_TAG: policy.digest, PARENT_TAG: parent, SCHEMA_TAG: names.VERSION}
            source = f"runs:/{ref.run_id}/{place}"
            made = self._client.create_model_version(name, source, ref.run_id, tags=tags)
            return str(made.version)

    def close_run(self, ref: RunRef, ended: bool, note: str) -> None:
        """End the parent run, with a sentence on its page."""
        with self._answering():
            self._client.set_tag(ref.run_id, _MLFLOW_NOTE, note)
            self._client.set_terminated(ref.run_id, "FINISHED" if ended else "FAILED")

    def abandon_run(self, run_id: str, status: RunStatus, outcome: str, note: str) -> None:
        """End a run that has no result, with the reason as a tag and a sentence on its page."""
        with self._answering():
            self._client.set_tag(run_id, OUTCOME_TAG, outcome)
            self._client.set_tag(run_id, _MLFLOW_NOTE, note)
            self._client.set_terminated(run_id, status)

    def open_runs(self, namespace: str, model: str) -> list[OpenRun]:
        """Runs of a model's experiment that MLflow shows as running."""
        from mlflow.entities import LifecycleStage

        with self._answering():
            found = self._client.get_experiment_by_name(names.experiment_name(namespace, model))
            if found is None or found.lifecycle_stage == LifecycleStage.DELETED:
                return []
            running = self._client.search_runs(
                [found.experiment_id], "attributes.status = 'RUNNING'", max_results=_SEARCH_PAGE
            )
        return [
            OpenRun(
                run.info.run_id,
                run.data.tags.get(UID_TAG, ""),
                run.data.tags.get(_MLFLOW_PARENT, ""),
                run.info.start_time / 1000.0,
            )
            for run in running
        ]

    def alias(self, namespace: str, model: str, alias: str) -> str:
        """The version behind an alias, empty when nothing carries it."""
        from mlflow.exceptions import RestException

        name = names.registered_policy_name(namespace, model)
        with self._answering():
            try:
                found = self._client.get_registered_model(name)
            except RestException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return ""
                raise
            return str(found.aliases.get(alias, ""))

    def move_alias(self, namespace: str, model: str, alias: str, version: str) -> None:
        """Point an alias at a version. MLflow keeps no history: write the ledger as well."""
        with self._answering():
            self._client.set_registered_model_alias(
                names.registered_policy_name(namespace, model), alias, version
            )

    def remove_alias(self, namespace: str, model: str, alias: str) -> None:
        """Take an alias off whatever carries it."""
        with self._answering():
            self._client.delete_registered_model_alias(
                names.registered_policy_name(namespace, model), alias
            )

    def version_of(self, namespace: str, model: str, digest: str) -> str:
        """The newest version that holds a policy digest, empty when there is none."""
        name = names.registered_policy_name(namespace, model)
        with self._answering():
            found = self._client.search_model_versions(f"name='{name}'")
            same = [int(one.version) for one in found if one.tags.get(SHA_TAG) == digest]
        return str(max(same)) if same else ""

    def _experiment(self, name: str) -> str:
        from mlflow.entities import LifecycleStage

        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name))
        if found.lifecycle_stage == LifecycleStage.DELETED:
            # MLflow keeps the name of what was deleted, so no other one could be created.
            log.warning("MLflow experiment %s was deleted. Restoring it.", name)
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _registered_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(
                name, description="Adaptive policies. `policy.json` is data: nothing to unpickle."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        listed = [Param(key, str(value)) for key, value in params.items()]
        self._client.log_batch(run_id, params=listed)

    def _log_trial(self, ref: RunRef, trial: Trial) -> None:
        import time

        from mlflow.entities import Metric, Param

        made = self._client.create_run(
            ref.experiment_id,
            tags={_MLFLOW_PARENT: ref.run_id, **trial.tags},
            run_name=_trial_name(trial),
        )
        now = int(time.time() * 1000)
        self._client.log_batch(
            made.info.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in trial.metrics.items()],
            params=[Param(key, str(value)) for key, value in trial.params.items()],
        )
        self._client.set_terminated(made.info.run_id, "FINISHED" if trial.ended else "FAILED")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn every way of not answering into Unavailable, and a refusal into Refused."""
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError

        try:
            yield
        except MlflowException as error:
            # A server that was not reached is reported as an internal error of the client.
            said = f"MLflow at {self._uri}: {error.message.splitlines()[0]}"
            if error.get_http_status_code() < 500:
                raise Refused(f"{said}. {REMEDY}") from error
            raise Unavailable(said) from error
        except (requests.RequestException, OperationalError, OSError) as error:
            raise Unavailable(f"MLflow at {self._uri}: {error}") from error


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.number:03d}"


def registry_of(settings: Settings) -> Registry | None:
    """The MLflow that the chart names, or None when it names none."""
    if not settings.mlflow_tracking_uri:
        return None
    return Registry(settings.mlflow_tracking_uri, settings.mlflow_link)
