"""What every test may ask for. Fixtures of the engine come from tests/engine.py, the wheel from tests/wheel.py, a
cluster from tests/cluster."""

import gc
import os
from collections.abc import Generator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# Imports and the collection of tests make much that stays, and no garbage. See `pytest_collection_finish`.
gc.disable()

# No example fails for its time: a machine may be busy.
settings.register_profile("others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in each run: a red run tells of the change. `make chaos` looks at others.
settings.register_profile("same", settings.get_profile("others"), derandomize=True)
settings.load_profile("same")

# Tracebacks as a server's log has them. By default `rich` draws each, with values, in a tenth of a second.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

pytest_plugins = [
    "tests.engine",
    "tests.wheel",
    "tests.cluster.fixtures",
    "tests.conformance.results",
    "tests.relay_pair",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped fails, as in CI")
    parser.addoption("--record-conformance", action="store_true", help="write the results of the clients' suite down")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let files with slow tests take turns with the others, until there are only others.

    So no worker begins a long file when the others have nothing left to do. And a slow file mostly waits for an engine:
    if all workers had slow files, the processors would be idle.

    Tests of a cluster are left out where there is none: `.ci/cluster` runs them."""
    if not os.environ.get("CLUSTER_IMAGE"):
        of_cluster = [item for item in items if item.get_closest_marker("cluster")]
        items[:] = [item for item in items if not item.get_closest_marker("cluster")]
        config.hook.pytest_deselected(items=of_cluster)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    paths = sorted(dict.fromkeys(item.path for item in items), key=lambda path: path not in slow)
    turn = {path: place if path in slow else place - len(slow) for place, path in enumerate(paths)}
    items.sort(key=lambda item: (turn[item.path], item.path not in slow))


def pytest_collection_finish() -> None:
    """Keep tests and modules from the garbage collector: to look at them took a quarter of the processes' time."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped test where none may be: a missing tool or right must not hide a promise that nobody checks."""
    report = yield
    no_skips = item.config.getoption("no_skips")
    if report.skipped and no_skips and not hasattr(report, "wasxfail") and call.excinfo:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped: {call.excinfo.value}"
    return report
