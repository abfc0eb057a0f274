"""Which addresses the server may send webhooks to: kinds of networks, and networks by their prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias
from urllib.parse import urlsplit

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

KINDS = ("public", "private", "loopback")

# Services of clouds that tell a machine its credentials. Most have link-local addresses.
_METADATA = [ip_address(text) for text in ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")]
# Shared by a provider's customers: not public, and not a network of one's own by its kind.
_CARRIER = ip_network("100.64.0.0/10")
# All that is given to owners of IPv6 networks. What Python calls global has other addresses, too.
_IPV6_PUBLIC = ip_network("2000::/3")
# IPv6 addresses that stand for IPv4 addresses, and the bits that these are shifted by.
_NAT64 = ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ip_network("2002::/16")
_COMPATIBLE = ip_network("::/96")


@dataclass(frozen=True, slots=True)
class Networks:
    """A list of entries: `public`, `private`, `loopback`, or a network as 10.1.0.0/16."""

    entries: Sequence[str] = ("public", "loopback")

    @classmethod
    def read(cls, text: str) -> "Networks":
        """Read entries that are separated by commas. Raises ValueError, which names the entry at fault."""
        entries = tuple(entry.strip().lower() for entry in text.split(","))
        for entry in entries:
            if entry not in KINDS:
                try:
                    ip_network(entry)
                except ValueError:
                    raise ValueError(f"{entry!r} in it is not {', '.join(KINDS)} or a network as 10.1.0.0/16") from None
        return cls(entries)

    def __str__(self) -> str:
        return ",".join(self.entries)

    def refusal(self, address: str) -> str:
        """Return why nothing may be sent to an IP address; empty: it may. Link-local addresses, multicast, those of
        metadata services and those without a meaning are always refused."""
        # An address with a zone is link-local.
        parsed = ip_address(address.partition("%")[0])
        for each in _meanings(parsed):
            if each in _METADATA or each.is_link_local or each.is_multicast or each.is_unspecified:
                return f"{address} is never allowed: it is link-local, multicast, unspecified or a metadata service"
            if not any(_matches(each, entry) for entry in self.entries):
                return f"{address} is not in webhook_networks ({self})"
        return ""

    def refusal_in(self, url: str) -> str:
        """Return why nothing may be sent to a URL whose host is an address; empty: it may, or its host is a name."""
        host = urlsplit(url).hostname or ""
        try:
            ip_address(host)
        except ValueError:
            return ""
        return self.refusal(host)


def _meanings(address: Address) -> Sequence[Address]:
    """Return the address, or what stands for another one together with that one."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped:
        # The system connects to the IPv4 address.
        return [address.ipv4_mapped]
    number = int(address)
    if address in _SIX_TO_FOUR:
        return [address, IPv4Address(number >> 80 & 0xFFFFFFFF)]
    if address in _NAT64 or (address in _COMPATIBLE and number > 0xFFFF):
        return [IPv4Address(number & 0xFFFFFFFF)]
    if address.teredo:
        return [address, *address.teredo]
    return [address]


def _matches(address: Address, entry: str) -> bool:
    if entry == "loopback":
        return address.is_loopback
    if entry == "public":
        return address.is_global and (isinstance(address, IPv4Address) or address in _IPV6_PUBLIC)
    if entry == "private":
        return not address.is_loopback and not address.is_reserved and (address.is_private or address in _CARRIER)
    return address in ip_network(entry)
