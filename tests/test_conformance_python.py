"""The Python client passes the conformance suite."""

import pytest

from tests.conformance.languages import PYTHON
from tests.conformance.suite import Suite

pytestmark = [pytest.mark.engine, pytest.mark.slow]


class TestPython(Suite):
    language = PYTHON
