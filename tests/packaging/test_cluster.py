"""The manifests: what current Kubernetes accepts, strictly, and no more rights than the restricted Pod Security level leaves."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

from fhirshield.settings import load
from tests.parts import ROOT

FOLDER = ROOT / "k8s"
VERSIONS = list(dict.fromkeys(utils.all_versions()))[-3:]
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())


def manifests() -> list[dict[str, Any]]:
    return [one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())]


def of(kind: str) -> dict[str, Any]:
    return next(one for one in manifests() if one["kind"] == kind)


POD = of("StatefulSet")["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_accepts_it_strictly(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kustomization_names_every_file() -> None:
    generated = [file for row in KUSTOMIZATION["configMapGenerator"] for file in row["files"]]
    assert {*KUSTOMIZATION["resources"], *generated, "kustomization.yaml"} == {path.name for path in FOLDER.iterdir()}


@pytest.mark.promise
def test_the_pod_has_no_more_rights_than_restricted() -> None:
    """Pod Security Standards, level restricted."""
    assert POD["securityContext"]["runAsNonRoot"] and POD["securityContext"]["runAsUser"] > 0
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & POD.keys()
    for container in POD["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]} and "privileged" not in context
        assert all("hostPort" not in port for port in container["ports"])
    assert all(volume.keys() - {"name"} <= {"configMap", "secret", "emptyDir"} for volume in POD["volumes"])
    assert POD["automountServiceAccountToken"] is False


def test_what_the_settings_name_is_mounted() -> None:
    """Every path of the settings lies below a mount; probes and metrics are on the admin port, which no Service has."""
    settings = load(FOLDER / "fhirshield.yaml")
    mounts = [mount["mountPath"] for mount in CONTAINER["volumeMounts"]]
    for path in (settings.audit.journal, settings.audit.key_file, settings.audit.witness, settings.ring_file):
        assert any(str(path).startswith(mount) for mount in mounts), path
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"fhir": settings.port, "admin": int(settings.admin.rpartition(":")[2])}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] == "admin"
    services = [one for one in manifests() if one["kind"] == "Service"]
    assert all(port["targetPort"] == "fhir" for one in services for port in one["spec"]["ports"])
    claims = {claim["metadata"]["name"] for claim in of("StatefulSet")["spec"]["volumeClaimTemplates"]}
    named = {volume["name"] for volume in POD["volumes"]} | claims
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == named


def test_selectors_meet() -> None:
    labels = of("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    for one in manifests():
        spec = one.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        wanted = selector.get("matchLabels", selector) if isinstance(selector, dict) else {}
        assert wanted.items() <= labels.items(), one["kind"]
