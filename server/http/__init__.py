"""The HTTP face: OpenAI's JSON in, calls to the core, OpenAI's JSON out.

Knows no numpy, no engine and no gRPC; all decisions are the core's.
"""
