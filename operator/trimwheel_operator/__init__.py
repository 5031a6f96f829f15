"""The operator: turns declared models, policies and rollouts into workers and assignments.

Level-triggered in three steps: `gather` reads the world into one frozen `ObservedState`, `plan`
(pure, the clock is an argument) says what follows, `apply` is the only writer. `handlers` and
`watching` merely mark which model to look at again; `reconcile` runs one task for each model.
Whatever was decided is in the PolicyAssignment before anything else is written, so killing this
process at any moment loses nothing and decides nothing twice.
"""
