"""The operator: turns declared models, policies and rollouts into workers and assignments.

Level-triggered in three steps: `gather` reads the world into one frozen `ObservedState`, `plan`
(pure, the clock is an argument) says what follows, `apply` is the only writer. `informers` keep
all objects in one `store` by model, `marks` says which model a change concerns, `schedule` whose
turn it is, and `reconcile` runs the passes; `handlers` is the Kopf side.
Whatever was decided is in the PolicyAssignment before anything else is written, so killing this
process at any moment loses nothing and decides nothing twice.
"""
