"""What operators may choose in the Helm chart, such as drains, rollouts, variables and accounts; rendered by helm."""

from __future__ import annotations

import pytest

from server.settings import Settings
from tests.docker.chart_tools import tools
from tests.docker.test_chart_rendered import environment, of

pytestmark = pytest.mark.slow
GATEWAY, WORKER = "gateway-demo-fluid-serve", "worker-demo-fluid-serve-atlas-128"


@pytest.mark.parametrize(
    ("given", "gateway"),
    [("gateway.drainSeconds=null", 60), ("gateway.drainSeconds=120", 120), ("gateway.drainSeconds=0", 0)],
)
def test_gateways_may_have_a_drain_of_their_own(given: str, gateway: int) -> None:
    """Requests that outlast it are cut off and their jobs canceled, while workers requeue theirs."""
    manifests = tools().template("trial-values.yaml", "--set", "drainSeconds=60", "--set", given)
    for name, seconds, before in ((GATEWAY, gateway, 5), (WORKER, 60, 0)):
        pod = of(manifests, "Deployment")[name]["spec"]["template"]["spec"]
        assert Settings.from_env(environment(pod)).drain_s == seconds
        assert pod["terminationGracePeriodSeconds"] == seconds + before + 10


def test_a_rollout_waits_for_models_to_load() -> None:
    """A worker without a probe counts as available at once: all were replaced before any had loaded its model."""
    options = ("--set", "models.slow.minReadySeconds=900", "--set", "models.slow.checkpoint=/checkpoints/photos")
    deployments = of(tools().template("trial-values.yaml", *options), "Deployment")
    found = {name: each["spec"].get("minReadySeconds") for name, each in deployments.items()}
    assert found == {GATEWAY: None, WORKER: 30, "worker-demo-fluid-serve-slow": 900}
    for name in (WORKER, "worker-demo-fluid-serve-slow"):
        spec = deployments[name]["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
        assert spec["progressDeadlineSeconds"] > spec["minReadySeconds"], "Kubernetes refuses it"


def test_pods_have_what_the_operator_adds() -> None:
    """A CA of Redis, tokens and roles: the chart had no place for them in gateways, and for variables nowhere."""
    manifests = tools().template("production-values.yaml")
    deployments = of(manifests, "Deployment")
    assert len(deployments) == 3
    for each in deployments.values():
        pod = each["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "deployment.environment=production"} in container["env"]
        assert [ref["secretRef"]["name"] for ref in container["envFrom"]] == ["fluid-bucket", "fluid-collector"]
        assert {"name": "redis-ca", "secret": {"secretName": "redis-ca"}} in pod["volumes"]
        assert {"name": "redis-ca", "mountPath": "/etc/redis", "readOnly": True} in container["volumeMounts"]
        account = of(manifests, "ServiceAccount")[pod["serviceAccountName"]]
        assert list(account["metadata"]["annotations"]) == ["eks.amazonaws.com/role-arn"]
    (account,) = of(tools().template("trial-values.yaml"), "ServiceAccount").values()
    assert "annotations" not in account["metadata"]
    for each in of(tools().template("trial-values.yaml"), "Deployment").values():
        assert "envFrom" not in each["spec"]["template"]["spec"]["containers"][0]


def test_the_network_policy_admits_the_pod_of_helm_test() -> None:
    """With gatewayFrom it was not among the peers, and `helm test` failed although the service was well."""
    options = (
        "--set",
        "networkPolicy.enabled=true",
        "--set",
        "networkPolicy.gatewayFrom[0].namespaceSelector.matchLabels.a=b",
    )
    manifests = tools().template("trial-values.yaml", *options)
    assert tools().faults(manifests) == []
    (pod,) = of(manifests, "Pod").values()
    (rule,) = of(manifests, "NetworkPolicy")[GATEWAY]["spec"]["ingress"]
    given, own = rule["from"]
    assert given == {"namespaceSelector": {"matchLabels": {"a": "b"}}}
    chosen, has = own["podSelector"]["matchLabels"], pod["metadata"]["labels"]
    assert chosen.items() <= has.items() and chosen["app.kubernetes.io/component"] == "test"
    for each in of(manifests, "Service").values():
        assert not each["spec"]["selector"].items() <= has.items(), "traffic would go to the pod of the test"
    open_to_all = tools().template("trial-values.yaml", "--set", "networkPolicy.enabled=true")
    assert "from" not in of(open_to_all, "NetworkPolicy")[GATEWAY]["spec"]["ingress"][0]
