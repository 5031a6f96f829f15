"""What this worker is told to run: watched, remembered, and acknowledged.

`rule` decides (pure), `source` and its two implementations watch, `loop` ties them to an `apply` of
the caller's and to acknowledgements. Imports neither torch nor the front, so that a bench can run
fifty of these loops in one process.
"""
