"""What every test may ask for. Fixtures of the engine come from tests/engine.py."""

pytest_plugins = ["tests.engine"]
