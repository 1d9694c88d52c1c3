"""Who reaches whom, by the NetworkPolicies of a rendering: as Kubernetes defines what the chart uses of them."""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.kubernetes.chart import NAMESPACE, Object, kinds, pods, selects


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or an address outside the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] | None = None  # None: no pod
    ports: Mapping[str, int] | None = None  # by name
    address: str = ""


def ends(objects: list[Object]) -> dict[str, End]:
    """The pods of a rendering, by component; two groups of workers are one."""
    return {pod.labels["app.kubernetes.io/component"]: End(NAMESPACE, pod.labels, pod.ports) for pod in pods(objects)}


def stranger(namespace: str = "elsewhere") -> End:
    """A pod of nobody's."""
    return End(namespace, {"app": "stranger"}, {})


def outside(address: str) -> End:
    return End(address=address)


def reaches(objects: list[Object], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies let `source` open a connection to `target`: out of the one and into the other."""
    policies, asked = kinds(objects, "NetworkPolicy"), (port, protocol)
    out = _allowed(policies, source, target, asked, "Egress", "egress", "to", target)
    into = _allowed(policies, target, source, asked, "Ingress", "ingress", "from", target)
    return out and into


def _allowed(
    policies: list[Object],
    at: End,
    other: End,
    asked: tuple[int, str],
    kind: str,
    rules: str,
    peers: str,
    listening: End,
) -> bool:
    if at.labels is None or at.namespace != NAMESPACE:
        return True  # nobody's policies but its own
    met = [
        policy
        for policy in policies
        if kind in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], at.labels)
    ]
    return not met or any(
        _opens(rule.get(peers), other) and _on(rule.get("ports"), asked, listening)
        for policy in met
        for rule in policy["spec"].get(rules, ())
    )


def _opens(peers: list[Any] | None, other: End) -> bool:
    return peers is None or any(_is(peer, other) for peer in peers)


def _is(peer: Mapping[str, Any], other: End) -> bool:
    if "ipBlock" in peer:
        # Of pods in the cluster a policy speaks by label; what an address means for them is the network's business.
        return other.labels is None and _within(peer["ipBlock"], other.address)
    if other.labels is None:
        return False
    in_namespace = (
        selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
        if "namespaceSelector" in peer
        else other.namespace == NAMESPACE
    )
    return in_namespace and selects(peer.get("podSelector", {}), other.labels)


def _within(block: Mapping[str, Any], address: str) -> bool:
    asked = ipaddress.ip_address(address)
    return asked in ipaddress.ip_network(block["cidr"]) and not any(
        asked in ipaddress.ip_network(left_out) for left_out in block.get("except", ())
    )


def _on(ports: list[Any] | None, asked: tuple[int, str], listening: End) -> bool:
    named = listening.ports or {}
    return ports is None or any(
        (named.get(each["port"], each["port"]), each.get("protocol", "TCP")) == asked for each in ports
    )


def misshapen(objects: list[Object]) -> Iterator[str]:
    """Blocks of addresses that an API server refuses: an exception must be a true part of its block."""
    for policy in kinds(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("egress") or ():
            for peer in rule.get("to", ()):
                block = peer.get("ipBlock", {"cidr": "::/0"})
                whole = ipaddress.ip_network(block["cidr"])
                for left_out in map(ipaddress.ip_network, block.get("except", ())):
                    if whole.version != left_out.version or whole == left_out or not left_out.subnet_of(whole):  # type: ignore[arg-type]
                        yield f"{policy['metadata']['name']}: {left_out} of {whole}"


def unguarded(objects: list[Object]) -> Iterator[str]:
    """Pods that some policy does not close in both directions."""
    for pod in pods(objects):
        for kind in ("Ingress", "Egress"):
            if not any(
                kind in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], pod.labels)
                for policy in kinds(objects, "NetworkPolicy")
            ):
                yield f"{pod.where}: {kind}"
