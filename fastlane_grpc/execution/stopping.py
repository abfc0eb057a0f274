"""The schedule of a stop: the stop signal, the grace, the kill, and further kills until the container ends. Pure."""

import re
import signal
from dataclasses import dataclass, replace

from fastlane_grpc.clock import left
from fastlane_grpc.model import Stop, StopCause, utc_now

KILL = "SIGKILL"
# Pause before a kill is repeated that did not end the container, and before a signal that the engine did not take.
KILL_AGAIN_SECONDS = 10.0
SEND_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Stopping:
    """The signals of one stop and their times, on the clock of `boottime`. `sent` is the last signal that was sent."""

    stop: Stop
    signal: str
    kill_at: float
    again_at: float = 0.0
    sent: str = ""

    @classmethod
    def begin(cls, stop: Stop, stop_signal: str, now: float) -> "Stopping":
        return cls(stop, signal_name(stop_signal), now + _grace_left(stop))

    def shortened(self, stop: Stop, now: float) -> "Stopping":
        """Return the schedule after a repeated stop: the grace can only become shorter."""
        return replace(self, stop=stop, kill_at=min(self.kill_at, now + _grace_left(stop)))

    def due(self, now: float) -> str:
        """Return the signal to send now; empty if none is due."""
        if now < self.again_at:
            return ""
        if now >= self.kill_at:
            return KILL
        return "" if self.sent else self.signal

    @property
    def next_time(self) -> float:
        """The time at which the next signal is due, if nothing happens until then."""
        return max(self.again_at, self.kill_at if self.sent else 0.0)

    def grace_seconds(self, now: float) -> float:
        """Return the time until the kill."""
        return max(0.0, self.kill_at - now)

    def did_send(self, name: str, now: float) -> "Stopping":
        return replace(self, sent=name, again_at=now + KILL_AGAIN_SECONDS if name == KILL else self.again_at)

    def could_not_send(self, now: float) -> "Stopping":
        return replace(self, again_at=now + SEND_AGAIN_SECONDS)

    def kill_now(self, now: float) -> "Stopping":
        return replace(self, kill_at=min(self.kill_at, now))

    @property
    def cause(self) -> str:
        """The cause of the stop, as a part of a sentence for people."""
        if self.stop.cause is StopCause.TIMEOUT:
            return "by its timeout"
        return "by a caller" + (f" ({self.stop.note})" if self.stop.note else "")


def signal_name(text: str) -> str:
    """Return the name of a stop signal, given as a number or a name with or without SIG; SIGTERM for an empty text."""
    if not text:
        return "SIGTERM"
    if text.isdigit():
        return signal.Signals(int(text)).name if int(text) in set(signal.Signals) else text
    return text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"


def signal_number(text: str) -> int | None:
    """Return the kernel's number of a signal, given as a number or a name; None if the name is unknown here."""
    name = signal_name(text)
    # Engines count real-time signals from 34; C libraries differ.
    if real_time := re.fullmatch(r"SIGRT(MIN|MAX)([+-]\d+)?", name):
        number = (34 if real_time[1] == "MIN" else 64) + int(real_time[2] or 0)
    else:
        number = int(name) if name.isdigit() else getattr(signal.Signals, name, 0)
    return number if 0 < number <= 64 else None


def _grace_left(stop: Stop) -> float:
    return left(stop.grace, since=stop.time, now=utc_now())
