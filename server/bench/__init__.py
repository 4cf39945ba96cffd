"""The load generator: requests to a running server as many users would send them, and what came.

Knows nothing of the server's inside; all it sees came over gRPC.
"""
