"""The server: config, variants, engine, gRPC, telemetry and the command line."""
