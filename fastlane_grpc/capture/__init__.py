"""Capture of a container's output into its record: by the recorder, or by the engine's attached stream."""
