"""The engine: turns submitted requests into tokens, on a thread of its own.

Knows no gRPC, no asyncio and no text; ``messages`` is its whole surface.
"""
