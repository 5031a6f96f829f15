"""An existing cluster in the place of the embedded one: `TRIMWHEEL_USE_KUBECONFIG`.

It offers what `world` needs of `trimwheel_local.cluster.Cluster`. The people of the story are
impersonated by the kubeconfig's own user, who must be allowed to. Prometheus and MLflow must be
there already (`TRIMWHEEL_USE_PROMETHEUS`, `TRIMWHEEL_USE_MLFLOW`), and images too: a values file in
`TRIMWHEEL_VALUES` says where. Nothing but the release and the model's namespace is removed later.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trimwheel_api.errors import SetupFailed, Unavailable
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local import binaries

RELEASE = "trimwheel"


class ExistingCluster:
    """A cluster that somebody else runs."""

    def __init__(self, kubeconfig: Path, folder: Path, chart: Path) -> None:
        if not kubeconfig.exists():
            raise SetupFailed(f"TRIMWHEEL_USE_KUBECONFIG: {kubeconfig} does not exist")
        self.kubeconfig = kubeconfig.resolve()
        self._folder = folder
        self._chart = chart

    def up(self) -> None:
        """Check that it answers. Raises Unavailable with kubectl's words."""
        try:
            self.kubectl("version", "--output=json")
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{self.kubeconfig}: {error.stderr.strip()}") from error

    def down(self, *, namespace: str) -> None:
        """Remove the release and the model's namespace; CRDs stay, as with any uninstall."""
        self.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=true")
        self._run("helm", "uninstall", RELEASE, "--namespace", RELEASE_NAMESPACE,
                  "--ignore-not-found")  # fmt: skip

    def env(self) -> dict[str, str]:
        """KUBECONFIG and a PATH on which our commands and kubectl are found."""
        return {"KUBECONFIG": str(self.kubeconfig), "PATH": binaries.search_path()}

    def server(self) -> str:
        """The API server's address."""
        text = self.kubectl(
            "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"
        )
        return text.strip()

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig that impersonates a person of the story."""
        config = self._config()
        config["users"][0]["user"] |= {"as": user, "as-groups": [*groups, "system:authenticated"]}
        return self._written(f"kubeconfig-{user}", config)

    def session_kubeconfig(self, namespace: str) -> Path:
        """The given credentials for a session that works in one namespace; theirs stay as is."""
        config = self._config()
        config["contexts"][0]["context"]["namespace"] = namespace
        return self._written("kubeconfig", config)

    def _config(self) -> dict[str, Any]:
        """The current context alone, with its certificates in it."""
        text = self.kubectl("config", "view", "--minify", "--flatten", "-o", "json")
        config: dict[str, Any] = json.loads(text)
        return config

    def _written(self, name: str, config: Mapping[str, Any]) -> Path:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(dict(config)))
        return path

    def install_chart(self, values: Mapping[str, Any]) -> None:
        """`helm upgrade --install` of the repository's chart. Raises SetupFailed."""
        file = self._folder / "values.yaml"
        file.write_text(yaml.safe_dump(dict(values)))
        try:
            self._run(
                "helm", "upgrade", "--install", RELEASE, str(self._chart), "--namespace",
                RELEASE_NAMESPACE, "--create-namespace", "--values", str(file),
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            raise SetupFailed(f"helm refused {self._chart}: {error.stderr.strip()}") from error

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; returns its output. Raises CalledProcessError."""
        return self._run("kubectl", *arguments, stdin=stdin)

    def _run(self, name: str, *arguments: str, stdin: str | None = None) -> str:
        env = os.environ | self.env()
        done = subprocess.run(
            [name, *arguments], env=env, input=stdin, capture_output=True, text=True, check=True
        )
        return done.stdout
