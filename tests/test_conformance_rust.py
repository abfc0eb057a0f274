"""The Rust client passes the conformance suite."""

from tests.conformance.languages import RUST
from tests.conformance.suite import Suite


class TestRust(Suite):
    language = RUST
