"""A connection to the API server with the credentials of this moment.

The client library never reads a rotated token again, so whoever fails or has watched for a minute
makes a new one (`connect`). Everything that may go wrong in a request comes out as TrimwheelError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kubernetes import client, config

from trimwheel_api.errors import Refused, SetupFailed, Unavailable
from trimwheel_kube import connection
from trimwheel_kube.answers import NETWORK

REQUEST_TIMEOUT = (3.0, 10.0)
"""(connect, read) seconds of a plain request."""


def connect() -> client.ApiClient:
    """A client by KUBECONFIG where it is set, by the pod's service account elsewhere."""
    with unavailable("credentials"):
        # Retrying is ours: a hidden retry would hold back the news that the server is away.
        return connection.connect(retries=False).api


@contextmanager
def unavailable(what: str) -> Iterator[None]:
    """Map what the library raises: Refused for 403, Unavailable for the rest."""
    try:
        yield
    except client.ApiException as error:
        sentence = f"{what}: HTTP {error.status} {error.reason}"
        raise (Refused if error.status == 403 else Unavailable)(sentence) from error
    except (*NETWORK, config.ConfigException, SetupFailed) as error:
        raise Unavailable(f"{what}: {error}") from error
