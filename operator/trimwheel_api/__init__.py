"""The contract of Trimwheel: kinds, policy document, digest, metrics, exit decision, cohorts.

Everything here is plain data and pure functions over the standard library and pydantic; every
other package imports it and it imports none of them.
"""
