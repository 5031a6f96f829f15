"""The data plane: the adaptive model and its serving engine; no other package imports torch."""
