"""How a client lets an answer wait on the server; knows nothing of any API."""

# A window of a few bytes: what the client does not read stays where it was made. So a stream lasts
# for as long as a test needs it, however slow the test and however fast the engine.
NARROW = (("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0))
