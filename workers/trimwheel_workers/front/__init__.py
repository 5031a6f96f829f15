"""The HTTP front: one process without torch that answers probes, metrics and 429s at any time.

`app` is HTTP, `protocol` the Open Inference Protocol, `dispatch` the requests in flight, `guards`
and `auditing` the evidence, `metrics` the registry, `engine_client` the engine process, `worker`
ties them to the assignment, `server` runs and drains it all.
"""
