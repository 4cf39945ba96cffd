"""Comparing the variants of a config: measuring each by itself, and telling what came of it.

Measuring talks to real servers over gRPC; judging turns figures into intervals and sentences;
reports write them down. Knows nothing of how a variant is built, or of the engine inside a server.
"""
