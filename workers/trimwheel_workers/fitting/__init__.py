"""Fit a model from labelled texts: weights with exits, then learned scores, then the second router.

`recipe` says how, `weights` trains, `agreement` and `routing` fit on the frozen backbone, `fit`
runs the three. No data lives here: the demo brings its corpus, a benchmark its folder.
"""
