"""Which addresses webhooks may have: some never, others as the setting says, however they are written."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.networks import Networks

ALL = Networks.read("public, private, loopback, 0.0.0.0/0, ::/0")


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1", "ff02::1"),
        *("168.63.129.16", "100.100.100.200", "fd00:ec2::254", "::ffff:169.254.169.254", "::ffff:0.0.0.0"),
        *("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254"),
    ],
)
def test_some_addresses_are_refused_whatever_the_setting_says(address: str) -> None:
    assert "is never allowed" in ALL.refusal(address)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        *(("8.8.8.8", "public"), ("2001:4860:4860::8888", "public"), ("::ffff:8.8.8.8", "public")),
        *(
            ("127.0.0.1", "loopback"),
            ("127.255.0.1", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
        ),
        *(("10.0.0.1", "private"), ("192.168.1.1", "private"), ("172.16.0.1", "private"), ("100.64.0.1", "private")),
        *(("fd12::1", "private"), ("::ffff:10.0.0.1", "private"), ("64:ff9b::a00:1", "private")),
    ],
)
def test_an_address_is_of_one_kind(address: str, kind: str) -> None:
    for each in ("public", "private", "loopback"):
        assert (Networks.read(each).refusal(address) == "") == (each == kind)


@pytest.mark.parametrize("address", ["64:ff9b:1::a9fe:a9fe", "fec0::1", "::ffff:0:a9fe:a9fe", "5f00::1", "100:0:0:1::"])
def test_an_address_that_nobody_is_given_is_not_public(address: str) -> None:
    assert Networks.read("public").refusal(address)


def test_a_network_is_allowed_by_its_prefix() -> None:
    networks = Networks.read("10.1.0.0/16,fd12::/32")
    assert networks.refusal("10.1.2.3") == networks.refusal("fd12::7") == networks.refusal("::ffff:10.1.2.3") == ""
    assert networks.refusal("10.2.0.1") == "10.2.0.1 is not in webhook_networks (10.1.0.0/16,fd12::/32)"


@pytest.mark.parametrize("text", ["", "publik", "10.1.0.1/16", "public,,loopback", "example.org"])
def test_a_setting_that_cannot_be_read_names_its_entry(text: str) -> None:
    with pytest.raises(ValueError, match=r"in it is not public, private, loopback or a network"):
        Networks.read(text)


@given(st.ip_addresses(v=4), st.sampled_from(["public", "private", "loopback", "public,loopback", "10.0.0.0/8"]))
def test_an_address_within_another_one_is_treated_alike(address: IPv4Address, text: str) -> None:
    networks, number = Networks.read(text), int(address)
    for prefix in (0xFFFF << 32, 0x64FF9B << 96):
        assert bool(networks.refusal(str(IPv6Address(prefix | number)))) == bool(networks.refusal(str(address)))
    if networks.refusal(str(address)):
        assert networks.refusal(str(IPv6Address(0x2002 << 112 | number << 80 | 1)))


@given(st.ip_addresses())
def test_what_is_always_refused_is_in_no_setting(address: IPv4Address | IPv6Address) -> None:
    parsed = ip_address(str(address))
    if parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified:
        assert ALL.refusal(str(address))
