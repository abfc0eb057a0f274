"""The kit of a pod: the image with the relay and the recorder, as this checkout builds them."""

from pathlib import Path

from fastlane_grpc import recorder
from tests.tools import ROOT

KIT_IMAGE = "fastlane.example/kit:1"
# Built by .ci/relay.
RELAY = ROOT / ".tools" / "bin" / "relay"


def recorder_program() -> Path:
    """Return the recorder for this machine."""
    built = filter(None, map(recorder.binary, recorder.ARCHITECTURES))
    program = next(built, None)
    assert program, "the recorder is not built"
    return program
