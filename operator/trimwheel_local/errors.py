"""Exceptions of the embedded Kubernetes, grown from the tree in `trimwheel_api.errors`.

SetupFailed               a prerequisite of the machine is missing
+-- BinaryError           a control-plane binary is missing and could not be built
    +-- DownloadError     a release could not be downloaded; a build may still do
Unavailable
+-- NotRunning            the command needs a running cluster, and there is none
+-- StartError            a component did not become ready; ends with the tail of its log
"""

from __future__ import annotations

from trimwheel_api.errors import SetupFailed, Unavailable


class BinaryError(SetupFailed):
    """A control-plane binary is missing and could not be built."""


class DownloadError(BinaryError):
    """A file of an official release could not be had, or is not what was published."""


class NotRunning(Unavailable):
    """The command needs a running cluster, and there is none."""


class StartError(Unavailable):
    """A component did not become ready in time."""
