"""The Docker engine: its API, images, credentials and container bodies. No other package speaks to an engine."""
