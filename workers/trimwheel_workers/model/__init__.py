"""The adaptive encoder: a small transformer that may answer at any of its exits.

Read it top-down: `config` (sizes and batch knobs), `blocks` (one layer), `encoder` (the model:
adaptive and full-depth forward), `exits` (heads and compaction), `scores` (how sure an exit is).
`kernels` holds what is specific to the processor, `packing` lays texts out without padding,
`artifact` is the folder on disk, `reference` the slow, padded twin that the tests compare with.
"""
