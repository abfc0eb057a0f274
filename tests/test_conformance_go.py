"""The Go client passes the conformance suite."""

import pytest

from tests.conformance.languages import GO
from tests.conformance.suite import Suite

pytestmark = [pytest.mark.engine, pytest.mark.slow]


class TestGo(Suite):
    language = GO
