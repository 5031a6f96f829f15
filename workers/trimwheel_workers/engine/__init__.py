"""The engine process: it alone imports torch, and talks to the front through one socket.

`frames` is the wire, `scheduler` decides what shares a batch (neither torch nor sockets), `runner`
runs batches and audits on the model, `loop` is the process. `frames` is imported by the front too,
so this package's `__init__` imports nothing.
"""
