"""The Node client passes the conformance suite."""

import pytest

from tests.conformance.languages import NODE
from tests.conformance.suite import Suite

pytestmark = [pytest.mark.engine, pytest.mark.slow]


class TestNode(Suite):
    language = NODE
