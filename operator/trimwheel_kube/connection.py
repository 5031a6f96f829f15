"""Credentials and settings of a connection to the API server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from kubernetes import client, config
from kubernetes.config import ConfigException
from yaml import YAMLError

from trimwheel_api.errors import SetupFailed
from trimwheel_kube.decoding import Client

_MALFORMED = (
    YAMLError, TypeError, KeyError, IndexError, ValueError, AttributeError, OSError, RecursionError,
)  # fmt: skip
"""What the client library raises on a file that is no kubeconfig: it looks at no type."""
_LARGEST = 4 << 20
"""Bytes of a kubeconfig; reading more as YAML takes a minute."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Connection(NamedTuple):
    """A client and the namespace that its credentials speak of."""

    api: Any
    namespace: str

    @property
    def server(self) -> str:
        """Address of the API server."""
        return str(self.api.configuration.host)


def connect(
    kubeconfig: str | None = None,
    context: str | None = None,
    *,
    retries: int = 1,
    connections: int | None = None,
) -> Connection:
    """By kubeconfig (the one named, KUBECONFIG or ~/.kube/config), else by the pod's account.

    `retries`: how often the library repeats a request unasked. A caller that retries by itself, or
    for whom somebody waits, wants the bad news soon. `connections`: how many are kept open, where
    many threads share this one. Raises SetupFailed without credentials, or
    when the kubeconfig is none.
    """
    # Read here, because the library reads it once, when it is imported.
    named = kubeconfig or os.environ.get("KUBECONFIG") or None
    settings = client.Configuration()
    settings.retries = retries
    if connections is not None:
        settings.connection_pool_maxsize = connections
    try:
        _check_sizes(named)
        config.load_kube_config(named, context, settings, persist_config=False)
        namespace = _context_namespace(named, context)
    except ConfigException as error:
        if named or context:
            raise _unusable(named, error) from error
        namespace = _load_in_cluster(settings, str(error))
    except _MALFORMED as error:
        raise _unusable(named, error) from error
    return Connection(Client(settings), namespace)


def _check_sizes(named: str | None) -> None:
    for part in (named or "").split(os.pathsep):
        size = os.stat(part).st_size if part and os.path.isfile(part) else 0
        if size > _LARGEST:
            raise ValueError(f"{size:,} bytes are more than {_LARGEST:,}")


def _unusable(named: str | None, error: Exception) -> SetupFailed:
    said = " ".join(str(error).split())
    return SetupFailed(
        f"kubeconfig: {named or '~/.kube/config'} cannot be used ({said}): mend it, or name "
        "another with --kubeconfig or KUBECONFIG"
    )


def _context_namespace(kubeconfig: str | None, context: str | None) -> str:
    contexts, current = config.list_kube_config_contexts(kubeconfig)
    chosen = next((one for one in contexts if one["name"] == context), current)
    return str(chosen["context"].get("namespace", "default"))


def _load_in_cluster(settings: Any, no_kubeconfig: str) -> str:
    try:
        config.load_incluster_config(settings)
    except ConfigException as error:
        raise SetupFailed(
            f"no kubeconfig ({no_kubeconfig}) and no service account of a pod ({error}): set "
            'KUBECONFIG or pass --kubeconfig; for the demo\'s cluster run eval "$(trimwheel env)"'
        ) from error
    return _POD_NAMESPACE.read_text().strip()
