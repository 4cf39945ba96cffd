"""The gRPC face: protobuf in, calls to the core, protobuf out.

Knows no numpy, no engine and no onnxruntime; all decisions are the core's.
"""
