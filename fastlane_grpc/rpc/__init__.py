"""The contract over gRPC: the only rooms that know what a status code, a message or a channel is."""
