"""The Java client passes the conformance suite."""

from tests.conformance.languages import JAVA
from tests.conformance.suite import Suite


class TestJava(Suite):
    language = JAVA
