"""The embedded Kubernetes: a real control plane on loopback, pods as local processes.

`cluster.Cluster` is the way in. It needs neither root nor Docker, binds 127.0.0.0/8 only, and
isolates nothing: a pod may do whatever the user who started the cluster may do.
"""
