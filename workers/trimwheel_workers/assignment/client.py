"""A connection to the API server with the credentials of this moment.

The client library never reads a rotated token again, so whoever fails or has watched for a minute
makes a new one (`connect`). Everything that may go wrong in a request comes out as TrimwheelError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3
from kubernetes import client, config
from kubernetes.client.rest import ApiException

from trimwheel_api.errors import Refused, Unavailable

REQUEST_TIMEOUT = (3.0, 10.0)
"""(connect, read) seconds of a plain request."""


def connect() -> client.ApiClient:
    """A client by KUBECONFIG where it is set, by the pod's service account elsewhere."""
    configuration = client.Configuration()
    with unavailable("credentials"):
        if os.environ.get("KUBECONFIG"):
            config.load_kube_config(client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    # Retrying is ours: a hidden retry would hold back the news that the server is away.
    configuration.retries = False
    return client.ApiClient(configuration)


@contextmanager
def unavailable(what: str) -> Iterator[None]:
    """Map what the library raises: Refused for 403, Unavailable for the rest."""
    try:
        yield
    except ApiException as error:
        sentence = f"{what}: HTTP {error.status} {error.reason}"
        raise (Refused if error.status == 403 else Unavailable)(sentence) from error
    except (urllib3.exceptions.HTTPError, OSError, config.ConfigException) as error:
        raise Unavailable(f"{what}: {error}") from error
