"""`trimwheel`, also installed as `kubectl-trimwheel`: verbs to watch, decide and run the loop.

Loads a verb's package only when the verb is called; the verbs of other packages are found through
entry points. Talks to the API server alone: it decides nothing itself.
"""
