"""The Java client passes the conformance suite."""

import pytest

from tests.conformance.languages import JAVA
from tests.conformance.suite import Suite

# The first build of a machine downloads what Maven needs.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]


class TestJava(Suite):
    language = JAVA
