"""Deployment files: valid references, no secrets, no root, no shared workspaces."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.core.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = read_yaml(INFRA / "compose.yaml")
KUBERNETES = sorted((INFRA / "kubernetes").glob("*.yaml"))
POOLS = {"local", "gpu"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
FILES = [
    INFRA / "Dockerfile",
    INFRA / "worker.sh",
    INFRA / "compose.yaml",
    INFRA / "slurm" / "worker.sbatch",
    *KUBERNETES,
]
SECRET = re.compile(r"PASSWORD|PASSWD|AUTH_STRING|SECRET|TOKEN(?!IZERS)|API_KEY")


def objects() -> list[dict[str, Any]]:
    """All objects of the Kubernetes manifests."""
    manifests = [path for path in KUBERNETES if path.name != "kustomization.yaml"]
    return list(chain.from_iterable(map(YAML(typ="safe").load_all, manifests)))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of each workload, and the template of its pods."""
    for each in objects():
        if "template" in each.get("spec", {}):
            yield each["metadata"]["name"], each["spec"]["template"]


def containers() -> Iterator[dict[str, Any]]:
    """The containers of all pods."""
    for _, template in pods():
        yield from template["spec"]["containers"]


def volumes() -> list[str]:
    """The volumes of all services of Compose."""
    return list(chain.from_iterable(each["volumes"] for each in COMPOSE["services"].values()))


POD = pytest.mark.parametrize(
    "template", [template for _, template in pods()], ids=[name for name, _ in pods()]
)
SERVICE = pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=COMPOSE["services"])


@SERVICE
def test_compose_requires_passwords_from_the_environment(service: dict[str, Any]) -> None:
    secrets = {key: value for key, value in service["environment"].items() if SECRET.search(key)}
    assert secrets
    for key, value in secrets.items():
        assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), key


@POD
def test_kubernetes_takes_passwords_from_the_documented_secret(template: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    keys = re.findall(r"--from-literal=([a-z-]+)=", page)
    for container in template["spec"]["containers"]:
        secrets = {each["name"]: each for each in container["env"] if SECRET.search(each["name"])}
        assert secrets
        for name, each in secrets.items():
            assert "value" not in each, name
            reference = each["valueFrom"]["secretKeyRef"]
            assert reference["name"] == "med-r1"
            assert reference["key"] in keys


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_contains_a_password(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"kind: Secret\b", text)
    assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), "an address with a password in it"
    for line in text.splitlines():
        assignment = re.search(r"^\s*(?:ENV|ARG|export)?\s*(\w+)=(\S+)", line)
        assert not (assignment and SECRET.search(assignment[1])), line


def test_images_are_pinned_and_ours_has_the_version_of_the_project() -> None:
    dockerfile = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    images = {each["image"] for each in COMPOSE["services"].values()}
    images |= {container["image"] for container in containers()}
    images |= set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    assert {image for image in images if image.startswith("med-r1:")} == {f"med-r1:{VERSION}"}
    for image in images:
        assert re.fullmatch(r"[a-z0-9-]+:\d+\.\d+(\.\d+)?(-[a-z-]+)?", image), image
    overrides = read_yaml(INFRA / "kubernetes" / "kustomization.yaml")["images"]
    assert [(each["name"], each["newTag"]) for each in overrides] == [("med-r1", VERSION)]


def test_the_image_is_built_from_locked_requirements_and_does_not_run_as_root() -> None:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    installs = [line for line in text.splitlines() if re.search(r"(pip install|pip sync) ", line)]
    assert installs
    assert all("--require-hashes" in line for line in installs)
    users = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    assert users
    assert all(int(number) > 0 for number in users[-1])


@SERVICE
def test_no_service_of_compose_runs_as_root(service: dict[str, Any]) -> None:
    # our image has its own user, see above
    if service["image"].startswith("postgres:"):
        assert service["user"] == "postgres"
    else:
        assert service["image"].startswith("med-r1:")
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("privileged")


@POD
def test_no_pod_runs_as_root_or_can_escalate(template: dict[str, Any]) -> None:
    settings = template["spec"]["securityContext"]
    assert settings["runAsNonRoot"] is True
    assert settings["runAsUser"] > 0
    assert settings["seccompProfile"] == {"type": "RuntimeDefault"}
    assert template["spec"]["automountServiceAccountToken"] is False
    for container in template["spec"]["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]) == {"requests", "limits"}


def test_the_dashboard_is_published_on_loopback_only() -> None:
    ports = {name: each["ports"] for name, each in COMPOSE["services"].items() if "ports" in each}
    assert ports == {"server": ["127.0.0.1:4200:4200"]}
    assert all("type" not in each["spec"] for each in objects() if each["kind"] == "Service")
    assert not any(each["kind"] == "Ingress" or "hostNetwork" in str(each) for each in objects())


def test_background_services_run_in_the_process_of_the_only_server() -> None:
    """In separate processes without Redis, task runs and events are lost."""
    deployment = next(each for each in objects() if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    for command in (container["args"], COMPOSE["services"]["server"]["command"]):
        assert command[:3] == ["prefect", "server", "start"]
        assert "--no-services" not in command


def test_workers_poll_the_pools_of_the_deployments() -> None:
    commands = [each.get("command", [""]) for each in COMPOSE["services"].values()]
    commands += [container.get("args", [""]) for container in containers()]
    pools = [command[1:] for command in commands if command[0] == "med-r1-worker"]
    assert sorted(pools) == [["gpu"], ["gpu"], ["local"], ["local"]]
    deployments = read_yaml(INFRA / "prefect.yaml")["deployments"]
    assert {each["work_pool"]["name"] for each in deployments} == POOLS


def test_no_two_workers_share_a_workspace() -> None:
    workspaces = [volume for volume in volumes() if volume.endswith(":/workspace")]
    assert len(workspaces) == len(set(workspaces)) == 2
    for each in objects():
        if each["metadata"]["name"].startswith("worker-") and each["kind"] != "Service":
            assert each["kind"] == "StatefulSet", "only it gives each replica its own volume"
            (claim,) = each["spec"]["volumeClaimTemplates"]
            assert claim["metadata"]["name"] == "workspace"
            assert "shareProcessNamespace" not in each["spec"]["template"]["spec"]


def test_a_gpu_worker_has_one_gpu_and_no_probe_restarts_a_worker() -> None:
    templates = dict(pods())
    for name, gpus in (("worker-local", 0), ("worker-gpu", 1)):
        (container,) = templates[name]["spec"]["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
        assert "livenessProbe" not in container, "an outage of the server must not end a training"
    (device,) = COMPOSE["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert COMPOSE["services"]["worker-gpu"]["profiles"] == ["gpu"]


def test_files_of_compose_and_the_image_exist() -> None:
    build = COMPOSE["services"]["server"]["build"]
    context = INFRA / build["context"]
    assert (context / build["dockerfile"]).is_file()
    ignore = (INFRA / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    dockerfile = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    copies = set(re.findall(r"^COPY (?:--\S+ )?(\S+) ", dockerfile, re.MULTILINE))
    assert copies == {line[1:] for line in ignore if line.startswith("!")}
    assert all((context / path).is_file() for path in copies)
    sources = {volume.split(":")[0] for volume in volumes()}
    paths = {each for each in sources if each.startswith(".")}
    assert paths == {"./postgres/init.sql", "../.git"}
    assert all((INFRA / path).exists() for path in paths)
    assert sources - paths == set(COMPOSE["volumes"])


def test_kustomize_lists_all_manifests_and_selectors_and_keys_resolve() -> None:
    settings = read_yaml(INFRA / "kubernetes" / "kustomization.yaml")
    assert sorted([*settings["resources"], "kustomization.yaml"]) == [
        path.name for path in KUBERNETES
    ]
    labels = [template["metadata"]["labels"].items() for _, template in pods()]
    selectors = [each["spec"]["selector"] for each in objects() if each["kind"] == "Service"]
    selectors += [
        each["spec"]["podSelector"].get("matchLabels", {})
        for each in objects()
        if each["kind"] == "NetworkPolicy"
    ]
    assert len(selectors) == 9
    for selector in selectors:
        assert any(selector.items() <= each for each in labels), selector
    keys = {literal.split("=")[0] for literal in settings["configMapGenerator"][0]["literals"]}
    variables = chain.from_iterable(container["env"] for container in containers())
    sources = [each.get("valueFrom", {}) for each in variables]
    references = [each["configMapKeyRef"] for each in sources if "configMapKeyRef" in each]
    assert {each["key"] for each in references} == keys
