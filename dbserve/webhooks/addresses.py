"""Where a message may go: URLs and addresses that are safe to send to. Pure.

Whoever may make a webhook chooses where this service sends requests. So it must not be led to what only this machine
or its network can reach: itself, neighbours, the metadata service of a cloud.
"""

import ipaddress
from typing import NamedTuple

import httpx

from dbserve.contracts.webhook import LONGEST_URL
from dbserve.errors import AddressRefused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Addresses of IPv6 that stand for one of IPv4, which is what is reached through them.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is routed between networks
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")  # kept for protocols' own ends, and no receiver's
# Where clouds answer their machines, credentials included, though it is not link-local.
METADATA = (
    ipaddress.ip_network("100.100.100.200/32"),  # Alibaba
    ipaddress.ip_network("168.63.129.16/32"),  # Azure, by an address that looks public
    ipaddress.ip_network("192.0.0.192/32"),  # Oracle
    ipaddress.ip_network("fd00:42::42/128"),  # Scaleway
    ipaddress.ip_network("fd00:c1::a9fe:a9fe/128"),  # Oracle
    ipaddress.ip_network("fd00:ec2::/32"),  # AWS: metadata, and the credentials of pods
    ipaddress.ip_network("fd20:ce::254/128"),  # Google
)


class Target(NamedTuple):
    """A URL that may be sent to, if its host's addresses may."""

    url: httpx.URL
    host: str  # as a certificate and a Host header name it
    port: int


def target_of(url: str) -> Target:
    """The parts of a URL. Raises AddressRefused, which does not repeat it: it may hold a password."""
    try:
        parsed = httpx.URL(url)
        host, scheme, port = parsed.raw_host.decode("ascii"), parsed.scheme, parsed.port
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise AddressRefused("not a URL") from None
    if scheme not in {"http", "https"}:
        raise AddressRefused("only http and https are spoken")
    if parsed.userinfo:
        raise AddressRefused("a URL with user or password in it would show them to everybody who lists webhooks")
    if not host or len(url) > LONGEST_URL:
        raise AddressRefused("not the URL of a host")
    if port is not None and not 1 <= port <= 65_535:
        raise AddressRefused("not a port")
    return Target(parsed.copy_with(fragment=None), host, port or (443 if scheme == "https" else 80))


def refusal(
    address: str, *, private_hosts: bool, remedy: str = "DBSERVE_WEBHOOK_PRIVATE_HOSTS=true allows it"
) -> str | None:
    """Why nothing may be asked of an address; None: it may. `private_hosts`: the operator allows private ones.

    Link-local and known metadata addresses are refused in any case: there clouds tell a machine its credentials.
    """
    parsed = embedded_address(address)
    if parsed.is_link_local or any(parsed in known for known in METADATA):
        return "is link-local, or a cloud's metadata service"
    if parsed.is_multicast or parsed.is_unspecified or str(parsed) == "255.255.255.255":
        return "is no single host's"
    if private_hosts or _is_public(parsed):
        return None
    kind = "this machine's own" if parsed.is_loopback else "private, or not a public one"
    return f"is {kind} ({remedy})"


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and address not in _PROTOCOLS
    return address.is_global and address in _UNICAST


def embedded_address(text: str) -> Address:
    """What an address as text reaches, its zone left out. Raises ValueError when it is none."""
    return embedded(ipaddress.ip_address(text.partition("%")[0]))


def embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
