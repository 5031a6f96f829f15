"""The story: corpus, training, load generator, stages and report of the demo.

Plays on the embedded cluster or an existing one; the product itself never imports it.
"""
