"""Values as people write them in settings and on the command line: counts, sizes, durations and addresses.

What cannot be read raises a ValueError whose text continues a sentence: "must be a duration"."""

import re
from datetime import timedelta

from fastlane_grpc.text.receivers import mail_address_fault, url_fault

# Where a server listens unless it is told otherwise, and so where the command line looks for it.
DEFAULT_LISTEN = "127.0.0.1:7020"
# What is written for a limit that is not to be.
OFF = "off"


def read_count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < 1:
        raise ValueError("must be a whole number from 1 on")
    return int(text)


def read_bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([kmg]?)", text.lower())
    if match is None or int(match[1]) < 1:
        raise ValueError("must be a number of bytes, as 1048576, 512k, 64m or 1g")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]


class TooLong(ValueError):
    """A duration that is written as one, and beyond any use."""


_LONGEST = timedelta(days=99_999)


def read_duration(text: str) -> timedelta:
    match = re.fullmatch(r"(?:0*([0-9]+)d)?(?:0*([0-9]+)h)?(?:0*([0-9]+)m)?(?:0*([0-9]+)s)?", text)
    if match is None or not text:
        raise ValueError("must be a duration, as 90s, 30m, 1h30m or 2d")
    # No number of more digits is less than the limit, in any unit.
    parts = [int((part or "0")[:11]) for part in match.groups()]
    total_seconds = sum(part * unit for part, unit in zip(parts, (86_400, 3600, 60, 1), strict=True))
    if total_seconds > _LONGEST.total_seconds():
        raise TooLong(f"is too long; at most {_LONGEST.days}d are allowed")
    duration = timedelta(seconds=total_seconds)
    if not duration:
        raise ValueError("must be longer than 0")
    return duration


def read_address(text: str) -> str:
    scheme, has_scheme, _ = text.partition("://")
    if has_scheme:
        raise ValueError(f"must be HOST:PORT, without {scheme}://")
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("must be HOST:PORT, as 127.0.0.1:7020; port 0 takes a free one")
    return text


def read_webhook_url(text: str) -> str:
    if fault := url_fault(text):
        raise ValueError(fault)
    return text


def read_mail_address(text: str) -> str:
    if fault := mail_address_fault(text):
        raise ValueError(fault)
    return text
