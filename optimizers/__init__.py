"""Turns a model and a chain of stages into an artifact in the store; a program of its own.

``python -m optimizers plan`` checks and names what would be built, ``python -m optimizers build``
builds it. Knows nothing of serving.
"""
