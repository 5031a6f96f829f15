"""Live evidence: what Prometheus says, what its counters add up to, and what follows from them.

Used by the operator (verdicts of a rollout) and by the pipelines (drift, certificates, benches).
`client` asks Prometheus, `answers` names what may come back, `counters` turns raw samples into
counts, `evidence` turns counts into e-values, `verdicts` turns e-values into Pass, Fail or
NotEnoughEvidence. Leaves out: records (Parquet), which the pipelines read themselves.
"""
