"""Names and numbers that more than one part of the embedded Kubernetes needs.

Read by the control plane, the node, the add-ons and the tests. What the product's own
objects are called lives in `trimwheel_api.names`; this file is about the local machine only.
"""

from __future__ import annotations

from typing import Final

PROCESS_IMAGE_PREFIX: Final = "process.trimwheel.dev/"
"""Images that mean "run the command as a local process". Every other image is refused."""

NODE_NAME: Final = "local"
"""The only node; its user is `system:node:local`."""

GPU_RESOURCE: Final = "nvidia.com/gpu"
"""The extended resource that the node advertises without having it (`--fake-gpus`)."""

DEFAULT_FAKE_GPUS: Final = 8

ADDONS_NAMESPACE: Final = "trimwheel-addons"
RELEASE_NAME: Final = "trimwheel"

KUBELET_CLIENT: Final = "kube-apiserver-kubelet-client"
"""Common name of the one client certificate that the node's HTTPS port accepts."""

MAX_INDEX: Final = 255
"""127.96.0.0/11 holds 512 slices of /20; a cluster takes two."""

SUPERVISOR_COMPONENTS: Final = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "node",
)
