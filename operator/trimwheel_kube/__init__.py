"""The way to the API server that all packages share: a connection, its errors, our kinds.

`connection` finds credentials as kubectl does, `answers` turns what the server or the network says
into Trimwheel errors, `objects` gets, lists, creates and patches our kinds. Used by the CLI,
pipelines and the demo; operator and workers have clients of their own above it (any kind, watches,
fenced writes; one object, a fresh connection a minute) and share connection and answers.
"""
