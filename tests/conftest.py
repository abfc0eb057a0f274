"""What every test may ask for. Fixtures of the engine come from tests/engine.py, the wheel from tests/wheel.py."""

pytest_plugins = ["tests.engine", "tests.wheel"]
