"""The gRPC API over many machines by Ray Serve; see docs/ray.md."""
