"""The Job of a TuningRun: a pure function of the run and the settings, called by its story.

It lives in the release's namespace, where nobody who edits models can take its identity; labels
lead back to the run, and its TTL removes it. Where records and services are it reads from the
chart's ConfigMap: an operator that could name them could have forged records certified. Admission
(trimwheel-operator-jobs) accepts this shape alone.
"""

from __future__ import annotations

from typing import Any

from trimwheel_api import names
from trimwheel_api.kinds import TuningRun
from trimwheel_api.values import seconds
from trimwheel_operator.manifests import (
    GRACE_SECONDS,
    LAST_WORDS,
    from_field,
    pull_secrets,
    restricted,
    unprivileged,
)
from trimwheel_operator.settings import Settings

Json = dict[str, Any]

JOB_TTL_SECONDS = 3600
MAX_LABEL = 63
SCRATCH = "/var/run/trimwheel/scratch"
"""Where a Job's libraries may write."""
MODELS = "/var/run/trimwheel/models"
"""Where the volume of fetched models is mounted, if there is one."""
_LONGEST_DEADLINE_SECONDS = 2**31 - 1
"""Longer ones overflow the Job controller's nanoseconds into "deadline exceeded" at once."""
_SLACK_SECONDS = 60
"""The Job's deadline lies this much behind the run's own, which ends with a reason."""


def job_name(run: TuningRun) -> str:
    """Name of the run's Job: begins with its uid, so that two runs never share one."""
    return f"tuning-{run.metadata.uid[:8]}-{run.name}"[:MAX_LABEL].rstrip("-.")


def tuning_job(run: TuningRun, timeout: str, settings: Settings, model_uid: str = "") -> Json:
    """The Job of a TuningRun: in the release's namespace, found by labels, removed by its TTL.

    No ownerReference: the garbage collector deletes objects whose owner is in another namespace.
    """
    found = {
        names.LABEL_NAME: "trimwheel-tuning",
        names.LABEL_COMPONENT: names.COMPONENT_TUNING,
        names.LABEL_PART_OF: names.PART_OF,
        names.LABEL_MANAGED_BY: names.OPERATOR_ACCOUNT,
        names.LABEL_MODEL: run.spec.model,
        names.LABEL_MODEL_NAMESPACE: run.metadata.namespace,
        names.LABEL_MODEL_UID: model_uid,
        names.LABEL_TUNING_RUN: run.name[:MAX_LABEL].rstrip("-."),
        names.LABEL_TUNING_RUN_UID: run.metadata.uid,
    }
    cache: list[Json] = []
    mounts: list[Json] = [{"name": "scratch", "mountPath": SCRATCH}]
    volumes: list[Json] = [{"name": "scratch", "emptyDir": {}}]
    if claim := settings.model_cache_claim:
        cache.append({"name": "TRIMWHEEL_MODEL_CACHE", "value": MODELS})
        mounts.append({"name": "models", "mountPath": MODELS})
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": claim}})
    container = {
        "name": "tune",
        "image": settings.pipelines_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "trimwheel_pipelines", "tune"],
        "args": ["--namespace", run.metadata.namespace, "--name", run.name],
        "envFrom": [{"configMapRef": {"name": names.TUNING_CONFIG}}],
        "env": [
            *cache,
            from_field("POD_NAME", "metadata.name"),
            from_field("POD_IP", "status.podIP"),
            {"name": "HOME", "value": SCRATCH},
            {"name": "TMPDIR", "value": SCRATCH},
            *(dict(one) for one in settings.job_env),
        ],
        "resources": dict(settings.job_resources),
        "volumeMounts": mounts,
        "terminationMessagePolicy": LAST_WORDS,
        "securityContext": restricted(),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(run),
            "namespace": settings.release_namespace,
            "labels": found,
        },
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": JOB_TTL_SECONDS,
            "activeDeadlineSeconds": min(
                int(seconds(timeout)) + _SLACK_SECONDS, _LONGEST_DEADLINE_SECONDS
            ),
            "template": {
                "metadata": {"labels": found},
                "spec": {
                    "serviceAccountName": names.TUNING_ACCOUNT,
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": GRACE_SECONDS,
                    "securityContext": unprivileged(),
                    **pull_secrets(settings),
                    "volumes": volumes,
                    "containers": [container],
                    **settings.job_pod,
                },
            },
        },
    }
