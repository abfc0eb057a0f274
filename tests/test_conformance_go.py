"""The Go client passes the conformance suite."""

from tests.conformance.languages import GO
from tests.conformance.suite import Suite


class TestGo(Suite):
    language = GO
