"""What may never be rendered, whatever the values; and that each policy finds what it is there to find."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.kubernetes import confinement, references, topology
from tests.kubernetes.chart import SWITCHES, VALUES_FILES, Object, copy_of, kinds, rendered, values_of
from tests.kubernetes.references import unknown_sources, yours

EVERY = [*VALUES_FILES, *SWITCHES]
POLICIES = {policy.__name__: policy for policy in (*confinement.POLICIES, *references.POLICIES, *topology.POLICIES)}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_that_is_rendered_breaks_a_policy(policy: str, name: str) -> None:
    assert list(POLICIES[policy](rendered(name))) == []


@pytest.mark.parametrize("name", EVERY)
def test_secrets_config_and_claims_are_the_charts_or_named_by_the_values(name: str) -> None:
    assert list(unknown_sources(rendered(name), yours(values_of(name)))) == []


def _spec(objects: list[Object], kind: str) -> Any:
    return kinds(objects, kind)[0]["spec"]


REFERENCE_FAULTS: list[tuple[str, str, Callable[[list[Object]], Any]]] = [
    (
        "workloads_own_their_pods",
        "a selector of more than its own",
        lambda all_: _spec(all_, "Deployment")["selector"]["matchLabels"].pop("app.kubernetes.io/component"),
    ),
    (
        "selectors_meet_pods",
        "a Service of nobody",
        lambda all_: _spec(all_, "Service")["selector"].update({"app.kubernetes.io/component": "apy"}),
    ),
    (
        "selectors_meet_pods",
        "a Service of everybody",
        lambda all_: _spec(all_, "Service")["selector"].pop("app.kubernetes.io/component"),
    ),
    (
        "selectors_meet_pods",
        "a monitor of no Service",
        lambda all_: _spec(all_, "ServiceMonitor")["selector"]["matchLabels"].update(a="b"),
    ),
    ("ports_are_there", "of a Service", lambda all_: _spec(all_, "Service")["ports"][0].update(targetPort="htp")),
    ("ports_are_there", "of a monitor", lambda all_: _spec(all_, "ServiceMonitor")["endpoints"][0].update(port="htp")),
    (
        "ports_are_there",
        "of a monitor of pods",
        lambda all_: _spec(all_, "PodMonitor")["podMetricsEndpoints"][0].update(port="metric"),
    ),
    (
        "ports_are_there",
        "of a probe",
        lambda all_: _spec(all_, "Deployment")["template"]["spec"]["containers"][0]["livenessProbe"].update(
            httpGet={"path": "/", "port": "web"}
        ),
    ),
    (
        "backends_are_there",
        "of an Ingress",
        lambda all_: _spec(all_, "Ingress")["rules"][0]["http"]["paths"][0]["backend"]["service"].update(name="web"),
    ),
    (
        "backends_are_there",
        "to scale",
        lambda all_: _spec(all_, "HorizontalPodAutoscaler")["scaleTargetRef"].update(name="a"),
    ),
    ("backends_are_there", "scaled by two", lambda all_: _deployment(all_, "api")["spec"].update(replicas=1)),
    (
        "peers_are_there",
        "of a policy",
        lambda all_: _policy(all_, "redis")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].update(
            {"app.kubernetes.io/component": "apy"}
        ),
    ),
    (
        "mounts_are_volumes",
        "no volume",
        lambda all_: _deployment(all_, "api")["spec"]["template"]["spec"]["volumes"].pop(),
    ),
    (
        "mounts_are_volumes",
        "no mount",
        lambda all_: _deployment(all_, "api")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].pop(),
    ),
    (
        "accounts_are_there",
        "a misspelt one",
        lambda all_: _deployment(all_, "api")["spec"]["template"]["spec"].update(serviceAccountName="defualt"),
    ),
    (
        "commands_are_there",
        "a misspelt one",
        lambda all_: _deployment(all_, "api")["spec"]["template"]["spec"]["containers"][0].update(
            command=["dbserve", "serve"]
        ),
    ),
]


def _deployment(objects: list[Object], component: str) -> Object:
    [found] = [each for each in kinds(objects, "Deployment") if each["metadata"]["name"].endswith(component)]
    return found


def _policy(objects: list[Object], component: str) -> Object:
    [found] = [each for each in kinds(objects, "NetworkPolicy") if each["metadata"]["name"].endswith(component)]
    return found


def test_a_key_that_a_secret_does_not_have_is_found() -> None:
    objects = copy_of("defaults")
    kinds(objects, "Secret")[0]["stringData"].pop("scrape-key")
    assert len(list(references.unknown_keys(objects))) == 1


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap", "PersistentVolumeClaim"])
def test_a_source_that_nobody_made_is_found(kind: str) -> None:
    objects = [each for each in rendered("defaults") if each["kind"] != kind]
    assert any(f"the {kind} " in complaint for complaint in unknown_sources(objects, set()))


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        pytest.param(policy, fault, id=f"{policy}: {what}")
        for policy, what, fault in [*confinement.FAULTS, *topology.FAULTS]
    ],
)
def test_what_breaks_a_policy_is_found(policy: str, fault: Callable[[list[Object]], Any]) -> None:
    objects = copy_of("defaults")
    fault(objects)
    assert list(POLICIES[policy](objects))


@pytest.mark.parametrize(
    ("policy", "fault"),
    [pytest.param(policy, fault, id=f"{policy}: {what}") for policy, what, fault in REFERENCE_FAULTS],
)
def test_a_reference_to_nothing_is_found(policy: str, fault: Callable[[list[Object]], Any]) -> None:
    objects = copy_of("production")
    fault(objects)
    assert list(POLICIES[policy](objects))


def test_every_policy_is_seen_to_find_something() -> None:
    tried = {policy for policy, _, _ in [*confinement.FAULTS, *topology.FAULTS, *REFERENCE_FAULTS]} | {"unknown_keys"}
    assert tried == set(POLICIES)
