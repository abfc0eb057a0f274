"""The Python client passes the conformance suite."""

from tests.conformance.languages import PYTHON
from tests.conformance.suite import Suite


class TestPython(Suite):
    language = PYTHON
