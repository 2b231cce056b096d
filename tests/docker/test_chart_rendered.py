"""The Helm chart, linted and rendered by helm and validated strictly, offline; no cluster takes part.

helm and Kubernetes' schemas come from PyPI into an environment of their own (chart_tools.py); `make chart` runs this.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.cli import main
from server.settings import Settings
from tests.docker.chart_tools import CHART, HelmFailed, tools
from tests.docker.test_chart import EXAMPLES

pytestmark = pytest.mark.slow
PRODUCTION = "production-values.yaml"


def pods(manifests: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(name, pod spec) of everything that runs."""
    found = []
    for doc in manifests:
        if doc["kind"] == "Pod":
            found.append((doc["metadata"]["name"], doc["spec"]))
        elif doc["kind"] in ("Deployment", "StatefulSet"):
            found.append((doc["metadata"]["name"], doc["spec"]["template"]["spec"]))
    return found


def environment(pod: dict[str, Any]) -> dict[str, str]:
    """The settings of a pod's container. References to Secrets get a value that is valid for each."""
    secrets = {"FLUID_REDIS_URL": "redis://queue:6379", "FLUID_WEBHOOK_SECRET": "whsec_" + "A" * 32}
    variables = pod["containers"][0].get("env", [])
    names = [each["name"] for each in variables]
    assert len(set(names)) == len(names), "a variable is given twice"
    given = {each["name"]: each.get("value") or secrets[each["name"]] for each in variables}
    return {name: value for name, value in given.items() if name.startswith("FLUID_")}


def of(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {doc["metadata"]["name"]: doc for doc in manifests if doc["kind"] == kind}


@pytest.mark.parametrize("name", EXAMPLES)
def test_lint_finds_nothing(name: str) -> None:
    assert "0 chart(s) failed" in tools().helm("lint", "--strict", "--values", CHART / "ci" / name, CHART)


@pytest.mark.parametrize("name", EXAMPLES)
def test_manifests_are_valid(name: str) -> None:
    manifests = tools().template(name)
    assert len(manifests) >= 8
    assert tools().faults(manifests) == []


def test_the_validation_sees_faults() -> None:
    manifests = tools().template(PRODUCTION)
    of(manifests, "Deployment")["gateway-demo-fluid-serve"]["spec"]["template"]["spec"]["nodeSelektor"] = {}
    next(iter(of(manifests, "ScaledObject").values()))["spec"]["minReplicas"] = 0
    found = tools().faults(manifests)
    assert len(found) == 2 and "nodeSelektor" in found[0] and "minReplicas" in found[1]


@pytest.mark.parametrize("name", EXAMPLES)
def test_pods_keep_to_the_restricted_standard(name: str) -> None:
    for pod, spec in pods(tools().template(name)):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] and security["seccompProfile"]["type"] == "RuntimeDefault", pod
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False, pod
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(
            set(volume) <= {"name", "emptyDir", "secret", "persistentVolumeClaim"} for volume in spec.get("volumes", [])
        )
        for container in spec["containers"]:
            mine = container["securityContext"]
            assert mine["allowPrivilegeEscalation"] is False and mine["readOnlyRootFilesystem"] is True, pod
            assert mine["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
            if "args" in container:
                mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
                assert "/tmp" in mounts, "uploads and compiled kernels need a temporary folder"


@pytest.mark.parametrize("name", EXAMPLES)
def test_settings_and_commands_are_the_programs(name: str) -> None:
    manifests = tools().template(name)
    for _, spec in pods(manifests):
        for container in spec["containers"]:
            if "args" not in container:
                continue
            program, *words = container["args"]
            command = main._parser().parse_args(words).command
            settings = Settings.from_env(environment(spec))
            before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            assert spec["terminationGracePeriodSeconds"] >= settings.drain_s + before + 10
            assert (program, settings.redis_url != "") == ("fluid", True)
            if command == "gateway":
                assert settings.host == "0.0.0.0" and container["ports"][0]["containerPort"] == settings.port
                assert settings.wants_keys or "gateway-demo-fluid-serve" in settings.allowed_hosts.split(",")
                folder = Path(settings.api_keys_file).parent
                assert not settings.wants_keys or str(folder) in [m["mountPath"] for m in container["volumeMounts"]]
            else:
                assert command == "worker" and settings.checkpoint
                gpu = "nvidia.com/gpu" in container["resources"]["limits"]
                assert settings.device == ("cuda" if gpu else "auto")


@pytest.mark.parametrize("release", ["demo", "fluid", "fluid-redis", "fluid-serve"])
def test_names_of_services_are_no_settings(release: str) -> None:
    """A Service named fluid-redis would inject FLUID_REDIS_SERVICE_HOST into every other pod of the namespace."""
    services = of(tools().template("trial-values.yaml", release=release), "Service")
    assert len(services) == 2
    assert not [name for name in services if name.upper().replace("-", "_").startswith("FLUID")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_references_between_manifests_lead_somewhere(name: str) -> None:
    manifests = tools().template(name)
    deployments, services = of(manifests, "Deployment"), of(manifests, "Service")
    labels = {
        n: d["spec"]["template"]["metadata"]["labels"] for n, d in (deployments | of(manifests, "StatefulSet")).items()
    }

    def chosen(selector: dict[str, str]) -> list[str]:
        return [n for n, has in labels.items() if selector.items() <= has.items()]

    assert all(len(d["metadata"]["name"]) <= 63 for d in manifests)
    for each in deployments.values():
        assert chosen(each["spec"]["selector"]["matchLabels"]) == [each["metadata"]["name"]]
    for each in services.values():
        assert len(chosen(each["spec"]["selector"])) == 1
    for each in of(manifests, "PodDisruptionBudget").values():
        assert chosen(each["spec"]["selector"]["matchLabels"]) == [each["metadata"]["name"]]
    for each in of(manifests, "NetworkPolicy").values():
        assert chosen(each["spec"]["podSelector"]["matchLabels"])
    for each in [*of(manifests, "HorizontalPodAutoscaler").values(), *of(manifests, "ScaledObject").values()]:
        target = deployments[each["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "helm would undo what the scaler did"
    for each in of(manifests, "PodMonitor").values():
        assert chosen(each["spec"]["selector"]["matchLabels"]) == ["gateway-demo-fluid-serve"]
    for each in of(manifests, "HTTPRoute").values():
        (backend,) = each["spec"]["rules"][0]["backendRefs"]
        assert backend["port"] == services[backend["name"]]["spec"]["ports"][0]["port"]


def test_each_model_has_workers_of_its_own() -> None:
    """What a model says wins over the defaults, zeros as well."""
    options = ("--set", "models.portraits.gpus=0", "--set", "models.portraits.replicas=0")
    deployments = of(tools().template("gpu-values.yaml", *options), "Deployment")
    shipped, own = (deployments[f"worker-demo-fluid-serve-{name}"]["spec"] for name in ("atlas-128", "portraits"))
    assert (shipped["replicas"], own["replicas"]) == (1, 0)
    first, second = (environment(each["template"]["spec"]) for each in (shipped, own))
    assert (first["FLUID_CHECKPOINT"], first["FLUID_DEVICE"]) == ("atlas-128", "cuda")
    assert second["FLUID_CHECKPOINT"] == "/checkpoints/portraits-256" and "FLUID_DEVICE" not in second
    limits = [each["template"]["spec"]["containers"][0]["resources"]["limits"] for each in (shipped, own)]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == [1, None]


def test_secrets_stay_in_secrets() -> None:
    for name in EXAMPLES:
        manifests = tools().template(name)
        assert "secret@" not in json.dumps([doc for doc in manifests if doc["kind"] != "Secret"])
    (secret,) = of(tools().template("cpu-values.yaml"), "Secret").values()
    assert Settings.from_env({"FLUID_REDIS_URL": secret["stringData"]["url"]}).redis_url.endswith(":6379/0")


def test_the_rules_are_the_tested_ones() -> None:
    alerts = yaml.safe_load((CHART / "files/alerts.yml").read_text())["groups"][0]["rules"]
    (rule,) = of(tools().template(PRODUCTION), "PrometheusRule").values()
    rendered = rule["spec"]["groups"][0]["rules"]
    assert rendered == [each for each in alerts if each["alert"] != "FluidNoWorker"]
    (monitor,) = of(tools().template(PRODUCTION), "PodMonitor").values()
    jobs = {job for each in alerts for job in re.findall(r'job="(\w+)"', each["expr"])}
    assert {each["replacement"] for each in monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]} == jobs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "redis.bundled.enabled=false"], "Say where the queue is"),
        (["--set", "models=null"], "at least one model"),
        (["--set", "httpRoute.enabled=true"], "without API keys"),
        (["--set", "gateway.service.type=LoadBalancer"], "without API keys"),
        (["--set", "models.atlas-128.autoscaling.enabled=true"], "set prometheusUrl"),
        (["--set-string", "settings.FLUID_MAX_QUEU=5"], "FLUID_MAX_QUEU"),
        (["--set-string", "settings.FLUID_API_KEYS=x"], "FLUID_API_KEYS"),
        (["--set", "settings.FLUID_MAX_QUEUE=5"], "want string"),
        (["--set", "models.atlas-128.gpu=1"], "'gpu' not allowed"),
        (["--set", "gateway.readinessPath=/ready"], "readinessPath"),
        (["--set", "gateway.extraEnv[0].name=FLUID_MAX_QUEUE"], "FLUID_* belong into settings"),
        (["--set", "modelDefaults.extraEnv[0].name=FLUID_CHECKPOINT"], "extraEnv of atlas-128 has FLUID_CHECKPOINT"),
        (["--set", "models.atlas-128.extraEnv[0].name=HOME"], "which the chart sets itself"),
    ],
)
def test_values_that_cannot_work_are_refused(options: list[str], said: str) -> None:
    with pytest.raises(HelmFailed, match=re.escape(said)):
        tools().template("trial-values.yaml", *options)


def workers_wanted(tmp_path: Path, series: dict[str, str]) -> dict[str, int | None]:
    """Evaluate the triggers of atlas-128 after five minutes of these figures: {trigger: workers}; None: no figure."""
    triggers = of(tools().template(PRODUCTION), "ScaledObject")["worker-demo-fluid-serve-atlas-128"]["spec"]["triggers"]
    found: dict[str, int | None] = {}
    for trigger in triggers:
        query, threshold = trigger["metadata"]["query"], float(trigger["metadata"]["threshold"])
        case = {
            "interval": "15s",
            "input_series": [{"series": name, "values": text} for name, text in series.items()],
            "promql_expr_test": [{"expr": f"ceil(({query}) / {threshold})", "eval_time": "5m", "exp_samples": []}],
        }
        file = tmp_path / "triggers.yml"
        file.write_text(yaml.safe_dump({"evaluation_interval": "15s", "tests": [case]}))
        done = subprocess.run(
            ["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60, check=False
        )
        got = re.search(r"got:.*?\{\} ([0-9.E+]+)", done.stdout + done.stderr, flags=re.S)
        found[trigger["name"]] = int(float(got.group(1))) if got else None
    return found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH: apt-get install prometheus")
def test_triggers_ask_for_workers_while_there_is_work(tmp_path: Path) -> None:
    """Two gateways report the same queue; another model's work counts for nothing."""
    other = {
        'fluid_model_queue_row_steps{model="portraits-256", instance="a"}': "999999x40",
        'fluid_worker_rows{worker="e", instance="a"}': "8x40",
        'fluid_worker_up{worker="e", model="portraits-256", instance="a"}': "1x40",
    }
    unknown = workers_wanted(tmp_path, other)
    assert unknown == {"row-steps": None, "oldest-age": None, "rows": 0}, "an error, which keeps the first worker"

    def queue(steps: int, age: int) -> dict[str, str]:
        return other | {
            f'fluid_model_queue_{name}{{model="atlas-128", instance="{gateway}"}}': f"{value}x40"
            for gateway in "ab"
            for name, value in (("row_steps", steps), ("oldest_age_seconds", age))
        }

    assert workers_wanted(tmp_path, queue(0, 0)) == {"row-steps": 0, "oldest-age": 0, "rows": 0}
    assert workers_wanted(tmp_path, queue(1, 1)) == {"row-steps": 1, "oldest-age": 1, "rows": 0}
    assert workers_wanted(tmp_path, queue(20000, 200)) == {"row-steps": 3, "oldest-age": 4, "rows": 0}
    busy = queue(0, 0) | {
        f'{name}{{worker="{worker}"{more}, instance="{gateway}"}}': f"{value}x40"
        for gateway in "ab"
        for worker in ("v", "w")
        for name, more, value in (("fluid_worker_rows", "", 40), ("fluid_worker_up", ', model="atlas-128"', 1))
    }
    assert workers_wanted(tmp_path, busy) == {"row-steps": 0, "oldest-age": 0, "rows": 2}


def test_gateways_and_workers_reach_the_store_of_finished_images() -> None:
    """By the credentials of a bucket, or by a folder that all of them mount."""
    buckets = [pod for _, pod in pods(tools().template(PRODUCTION)) if "FLUID_RESULTS" in environment(pod)]
    assert len(buckets) == 3  # gateways, and the workers of two models
    for pod in buckets:
        assert {"secretRef": {"name": "fluid-bucket"}} in pod["containers"][0]["envFrom"]
    folders = [pod for _, pod in pods(tools().template("gpu-values.yaml")) if "FLUID_RESULTS" in environment(pod)]
    assert len(folders) == 3
    for pod in folders:
        assert {"name": "results", "mountPath": "/results"} in pod["containers"][0]["volumeMounts"]
        assert {"name": "results", "persistentVolumeClaim": {"claimName": "images"}} in pod["volumes"]
