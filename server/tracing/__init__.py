"""Traces of requests for OpenTelemetry, for those who ask for them.

``settings`` says whether anybody does, and is all that a server without tracing imports.
"""
