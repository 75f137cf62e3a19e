"""deploy/kubernetes/: valid for every supported Kubernetes, and the same promises as the compose file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sessions_api.settings import VARIABLES, Settings
from tests.deploy.compose import image, services
from tests.deploy.deployed import DEPLOY

FOLDER = DEPLOY / "kubernetes"
EXTENSIONS = {"servicemonitor.yaml"}
"""Of kinds that a cluster has by an operator; Kubernetes' own schemas do not know them."""
VERSIONS = ("1.30", "1.33", "1.37")


def kustomization() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    return loaded


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """(kind, name) → what would be applied."""
    found = {}
    for name in [*kustomization()["resources"], *EXTENSIONS]:
        for each in yaml.safe_load_all((FOLDER / name).read_text()):
            found[each["kind"], each["metadata"]["name"]] = each
    return found


def one(kind: str) -> dict[str, Any]:
    return manifests()[kind, "sessions-api"]


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = one("Deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    [found] = pod()["containers"]
    return dict(found)


LABELS = one("Deployment")["spec"]["template"]["metadata"]["labels"]


class TestTheFiles:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_are_valid(self, version: str) -> None:
        """By the API's own schema, and without a field that it does not know."""
        files = [FOLDER / name for name in kustomization()["resources"]]

        checked = subprocess.run(
            [Path(sys.executable).with_name("kubernetes-validate"), "--strict", "-k", version, *files],
            capture_output=True,
            text=True,
            check=False,
        )

        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_are_all_applied_or_named(self) -> None:
        """None lies there and does nothing; what needs an operator is named in a comment."""
        applied = set(kustomization()["resources"])
        assert {path.name for path in FOLDER.glob("*.yaml")} == applied | EXTENSIONS | {"kustomization.yaml"}

        text = (FOLDER / "kustomization.yaml").read_text()
        assert all(f"#  - {name}\n" in text for name in EXTENSIONS)

    def test_have_prometheus_told_of_every_rule(self) -> None:
        """As the operator takes them, from the very files that Prometheus by itself reads."""
        printed = subprocess.run([FOLDER / "prometheusrule"], capture_output=True, text=True, check=True)

        for name, told in zip(("rules", "alerts"), yaml.safe_load_all(printed.stdout), strict=True):
            assert (told["kind"], told["apiVersion"]) == ("PrometheusRule", "monitoring.coreos.com/v1")
            assert told["metadata"]["name"] == f"sessions-api-{name}"
            assert told["spec"] == yaml.safe_load((DEPLOY / "prometheus" / f"{name}.yml").read_text())

    def test_select_what_is_there(self) -> None:
        """Every selector finds the deployment's pods, or the metrics' service."""
        selectors = [
            one("Deployment")["spec"]["selector"]["matchLabels"],
            one("Service")["spec"]["selector"],
            manifests()["Service", "sessions-api-metrics"]["spec"]["selector"],
            one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
            one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
            *(each["labelSelector"]["matchLabels"] for each in pod()["topologySpreadConstraints"]),
        ]
        assert all(selector.items() <= LABELS.items() for selector in selectors)

        scaled = one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
        assert (scaled["kind"], scaled["name"]) in manifests()
        wanted = one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
        metrics = manifests()["Service", "sessions-api-metrics"]["metadata"]["labels"]
        assert wanted.items() <= metrics.items()
        assert metrics["app.kubernetes.io/name"] == "sessions-api"  # which becomes the alerts' `job`

    def test_name_ports_that_the_pod_has(self) -> None:
        ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
        assert ports == {"http": 3000, "metrics": int(one("ConfigMap")["data"]["SESSIONS_METRICS_PORT"])}
        assert str(ports["http"]) == image()["EXPOSE"]

        named = [
            port["targetPort"]
            for service in ("sessions-api", "sessions-api-metrics")
            for port in manifests()["Service", service]["spec"]["ports"]
        ]
        named += [rule["port"] for each in one("NetworkPolicy")["spec"]["ingress"] for rule in each["ports"]]
        named += [
            container()[probe]["httpGet"]["port"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        ]
        assert set(named) <= ports.keys()

    def test_name_only_real_settings(self) -> None:
        given = [*one("ConfigMap")["data"], *(each["name"] for each in container()["env"])]

        assert set(given) <= set(VARIABLES)
        assert len(given) == len(set(given))
        settings = {name: value for name, value in one("ConfigMap")["data"].items() if "FILE" not in name}
        assert Settings.from_env(settings).trusted_proxies

    def test_bind_nobody_to_one_ingress_controller(self) -> None:
        """What only one understands is in annotations, which others pass over, and the file says so."""
        ingress = one("Ingress")

        assert ingress["apiVersion"] == "networking.k8s.io/v1"
        assert {name.split("/")[0] for name in ingress["metadata"]["annotations"]} == {
            "nginx.ingress.kubernetes.io"
        }
        assert "  # Optional: for ingress-nginx alone" in (FOLDER / "ingress.yaml").read_text()

    def test_hold_no_secret(self) -> None:
        assert not [kind for kind, _ in manifests() if kind == "Secret"]
        assert container()["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "sessions-api"


class TestAPod:
    def test_is_as_confined_as_a_container_of_the_compose_file(self) -> None:
        """By the `restricted` standard, which the namespace holds as well."""
        user, _, group = image()["USER"].partition(":")
        confined = pod()["securityContext"]
        assert (confined["runAsUser"], confined["runAsGroup"]) == (int(user), int(group))
        assert confined["runAsNonRoot"] is True
        assert confined["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container()["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod()["automountServiceAccountToken"] is False
        assert pod().keys().isdisjoint({"hostNetwork", "hostPID", "hostIPC"})
        labels = one("Namespace")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"

    def test_may_write_tmp_and_nothing_else(self) -> None:
        mounts = {each["mountPath"]: each.get("readOnly", False) for each in container()["volumeMounts"]}
        assert mounts == {"/tmp": False, "/run/secrets/sessions-api": True}
        assert one("ConfigMap")["data"]["SESSIONS_KEYS_FILE"].startswith("/run/secrets/sessions-api/")

    def test_has_the_time_that_it_takes_to_end(self) -> None:
        """preStop, the drain, and what uvicorn adds to it, before SIGKILL."""
        [_, pause_s] = container()["lifecycle"]["preStop"]["exec"]["command"]
        drain_s = int(one("ConfigMap")["data"]["SESSIONS_DRAIN_SECONDS"])

        assert pod()["terminationGracePeriodSeconds"] > int(pause_s) + drain_s + 5
        assert int(pause_s) > 2  # endpoints and proxies have heard of it

    def test_is_restarted_only_for_its_own_fault(self) -> None:
        """Redis away makes it unready, on all replicas at once: to restart them would help nobody."""
        paths = {name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness")}
        assert set(paths.values()) == {"/livez"}
        assert container()["readinessProbe"]["httpGet"]["path"] == "/readyz"

    def test_is_never_the_last(self) -> None:
        """An upgrade starts one first; machines are emptied one pod at a time; three is the least."""
        assert one("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert "replicas" not in one("Deployment")["spec"]
        assert one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
        replicas = one("HorizontalPodAutoscaler")["spec"]
        compose = [name for name in services() if name.startswith("api-")]
        assert replicas["minReplicas"] == len(compose) < replicas["maxReplicas"]

    def test_is_bounded_in_memory_as_in_the_compose_file(self) -> None:
        assert container()["resources"]["limits"] == {"memory": "1Gi"}
        assert services()["api-1"]["mem_limit"] == "1g"
