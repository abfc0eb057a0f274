"""Receivers of notifications as people write them: URLs of webhooks and addresses of mails."""

import re
import socket
from urllib.parse import urlsplit

MAX_URL = 2048
MAX_MAIL_ADDRESS = 254

# The characters of RFC 3986. Others have to be encoded, so that nothing can end a line of HTTP.
_URL = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# An unquoted address of RFC 5321: nothing in it can end a header or a command of SMTP.
_MAIL = re.compile(
    rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~-]+)*@(?:{_LABEL}(?:\.{_LABEL})*)"
)


def url_fault(text: str) -> str:
    """Return what is wrong with the URL of a webhook; empty: nothing."""
    if len(text) > MAX_URL:
        return f"has {len(text)} characters; at most {MAX_URL} are allowed"
    if not _URL.fullmatch(text):
        return "is not a URL: it may hold only ASCII characters that URLs have; encode others as %XX"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return "is not a URL: its host or port is wrong"
    if parts.scheme.lower() not in {"http", "https"} or not parts.hostname:
        return "must be an http:// or https:// URL with a host"
    if not _IPV4.fullmatch(parts.hostname) and _is_number(parts.hostname):
        return "must not have a number as its host"
    if "%" in parts.netloc.rpartition("@")[2]:
        return "must not have % in its host"
    if parts.fragment or "#" in text:
        return "must not have a fragment (#)"
    return ""


def _is_number(host: str) -> bool:
    """Return whether a system may read this host as a number that stands for an address, as 0x7f.1."""
    if re.fullmatch(r"[0-9.]+", host):
        return True
    try:
        socket.inet_aton(host.rstrip("."))
    except OSError:
        return False
    return True


def mail_address_fault(text: str) -> str:
    """Return what is wrong with the address of a mail; empty: nothing."""
    local = text.rpartition("@")[0]
    if len(text) > MAX_MAIL_ADDRESS or len(local) > 64 or not _MAIL.fullmatch(text):
        return "is not a mail address, as name@example.org"
    return ""
