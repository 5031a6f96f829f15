"""Audit records on their way to the store: `segments` is the file format, `writer` the delivery."""
