"""Environment, command line and paths of a container, as Kubernetes defines them.

Pure: what ConfigMaps, Secrets and Services say is passed in. Two things differ from a container
runtime, since a process sees the host's files and resolver: mount paths and Service names are
replaced, in `command`, `args` and `env`, by the local folder and the Service's address. Service
environment variables (`FOO_PORT` ...) are left out; they collide with programs' own settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

VARIABLE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")
LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
SERVICE = re.compile(rf"(?<![\w.-])({LABEL})\.({LABEL})\.svc(?:\.cluster\.local)?\.?(?![\w-]|\.\w)")
SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
SUFFIXES |= {"Ti": 2**40, "m": 1e-3, "u": 1e-6, "n": 1e-9, "": 1}


class ConfigError(Exception):
    """The container cannot be set up as its spec says; the text names the field or object."""


@dataclass(frozen=True)
class Objects:
    """ConfigMaps and Secrets by (kind, name), as far as they exist; Secret data is decoded."""

    found: Mapping[tuple[str, str], Mapping[str, bytes]] = field(default_factory=dict)

    def data(self, kind: str, name: str, optional: bool) -> Mapping[str, bytes]:
        """The entries; empty if absent and optional. Raises ConfigError if absent otherwise."""
        data = self.found.get((kind, name))
        if data is None and not optional:
            raise ConfigError(f'{kind} "{name}" not found')
        return data or {}


@dataclass(frozen=True)
class Rewriter:
    """Replaces mount paths and Service names in texts."""

    mounts: Mapping[str, str]
    """Local folder by mount path."""
    services: Mapping[tuple[str, str], str]
    """ClusterIP by (namespace, name); only Services that have one."""

    def __call__(self, text: str, known: Mapping[str, str]) -> str:
        """Paths, then `$(NAME)` references, then Service names. Raises ConfigError.

        Paths come first, since a value that was expanded is a local path already; names come
        last, since they may be put together from variables.
        """
        return SERVICE.sub(self._service, expand(self.paths(text), known))

    def paths(self, text: str) -> str:
        """Mount paths by local folders."""
        if not self.mounts:
            return text
        longest_first = sorted(self.mounts, key=len, reverse=True)
        paths = "|".join(re.escape(path) for path in longest_first)
        # A path starts after anything that is no part of a name or path, or after a URL's slashes.
        pattern = rf"(?:(?<![\w./-])|(?<=://)|(?<=:///))({paths})(?![\w.-])"
        return re.sub(pattern, lambda match: self.mounts[match[1]], text)

    def _service(self, match: re.Match[str]) -> str:
        name, namespace = match[1], match[2]
        address = self.services.get((namespace, name))
        if address is None:
            raise ConfigError(
                f'Service "{name}" in namespace "{namespace}" (from {match[0]!r}) does not exist '
                "or has no ClusterIP; there is no DNS here, its address is filled in at the start"
            )
        return address


def references(container: Object) -> Iterator[tuple[str, str]]:
    """The (kind, name) of every ConfigMap and Secret that the environment reads."""
    for source in container.get("envFrom", []):
        for kind in ("configMap", "secret"):
            if reference := source.get(f"{kind}Ref"):
                yield kind, reference["name"]
    for variable in container.get("env", []):
        for kind in ("configMap", "secret"):
            if reference := variable.get("valueFrom", {}).get(f"{kind}KeyRef"):
                yield kind, reference["name"]


def variables(
    pod: Object,
    container: Object,
    objects: Objects,
    base: Mapping[str, str],
    rewrite: Rewriter,
) -> dict[str, str]:
    """The container's environment on top of `base`, `$(NAME)` references expanded.

    `pod` is the object with its addresses filled in. Raises ConfigError.
    """
    found = dict(base)
    for source in container.get("envFrom", []):
        for kind in ("configMap", "secret"):
            if reference := source.get(f"{kind}Ref"):
                data = objects.data(kind, reference["name"], reference.get("optional", False))
                prefix = source.get("prefix", "")
                values = {key: rewrite(value.decode(), {}) for key, value in data.items()}
                found |= {prefix + key: value for key, value in values.items()}
    for variable in container.get("env", []):
        if "valueFrom" in variable:
            value = _value_from(pod, container, objects, variable["valueFrom"])
            value = value if value is None else rewrite(value, {})
        else:
            value = rewrite(variable.get("value", ""), found)
        if value is not None:
            found[variable["name"]] = value
    return found


def expand(text: str, known: Mapping[str, str]) -> str:
    """`$(NAME)` by its value, `$$` by `$`; an unknown name stays as it is."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else known.get(match[2], match[0])

    return VARIABLE.sub(replace, text)


def command_line(container: Object, known: Mapping[str, str], rewrite: Rewriter) -> list[str]:
    """`command` and `args`, expanded and rewritten."""
    words = [*container.get("command", []), *container.get("args", [])]
    return [rewrite(word, known) for word in words]


def field_value(pod: Object, path: str) -> str:
    """A fieldRef. Raises ConfigError for a path that the downward API does not offer."""
    simple = {
        "metadata.name": ("metadata", "name"),
        "metadata.namespace": ("metadata", "namespace"),
        "metadata.uid": ("metadata", "uid"),
        "spec.nodeName": ("spec", "nodeName"),
        "spec.serviceAccountName": ("spec", "serviceAccountName"),
        "status.podIP": ("status", "podIP"),
        "status.podIPs": ("status", "podIP"),
        "status.hostIP": ("status", "hostIP"),
        "status.hostIPs": ("status", "hostIP"),
    }
    if path in simple:
        section, name = simple[path]
        return str(pod[section].get(name, ""))
    found = re.fullmatch(r"metadata\.(labels|annotations)(?:\['([^']+)'\])?", path)
    if not found:
        raise ConfigError(f"fieldRef.fieldPath: {path!r} is not a field of the downward API")
    values: dict[str, str] = pod["metadata"].get(found[1], {})
    if found[2]:
        return values.get(found[2], "")
    return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))


def resource_value(containers: Sequence[Object], default: str, reference: Object) -> str:
    """A resourceFieldRef in units of its divisor, rounded up; 0 when nothing is set."""
    name = reference.get("containerName", default)
    container = next((one for one in containers if one["name"] == name), None)
    if container is None:
        raise ConfigError(f"resourceFieldRef.containerName: there is no container {name!r}")
    section, _, resource = reference["resource"].partition(".")
    amount = container.get("resources", {}).get(section, {}).get(resource, "0")
    divisor = quantity(str(reference.get("divisor", "1"))) or 1.0
    return str(math.ceil(quantity(str(amount)) / divisor))


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: `500m` is 0.5, `1Gi` is 2**30."""
    found = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)([A-Za-z]*)", text)
    if not found or found[2] not in SUFFIXES:
        raise ConfigError(f"{text!r} is not a quantity")
    return float(found[1]) * SUFFIXES[found[2]]


def _value_from(pod: Object, container: Object, objects: Objects, source: Object) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        return resource_value(containers, container["name"], source["resourceFieldRef"])
    for kind in ("configMap", "secret"):
        if reference := source.get(f"{kind}KeyRef"):
            optional = reference.get("optional", False)
            data = objects.data(kind, reference["name"], optional)
            if reference["key"] in data:
                return data[reference["key"]].decode()
            if optional:
                return None
            raise ConfigError(f'{kind} "{reference["name"]}" has no key "{reference["key"]}"')
    raise ConfigError(f"valueFrom: {sorted(source)} is not supported")
