"""How the output of a container gets into its record: by the recorder, or by the engine's attached stream."""
