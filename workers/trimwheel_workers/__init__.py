"""The data plane: the adaptive model and its serving engine; the only package that imports torch."""
