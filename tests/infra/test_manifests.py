"""Deployment files: names exist, no secrets, no root, no shared workspaces."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
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
WRITTEN = [
    INFRA / "Dockerfile",
    INFRA / "worker.sh",
    INFRA / "compose.yaml",
    INFRA / "slurm" / "worker.sbatch",
    *KUBERNETES,
]
SECRET = re.compile(r"PASSWORD|PASSWD|AUTH_STRING|SECRET|TOKEN(?!IZERS)|API_KEY")


def objects() -> list[dict[str, Any]]:
    """Every object of the Kubernetes manifests."""
    manifests = [path for path in KUBERNETES if path.name != "kustomization.yaml"]
    return [each for path in manifests for each in YAML(typ="safe").load_all(path)]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of a workload, and the template of its pods."""
    for each in objects():
        if "template" in each.get("spec", {}):
            yield each["metadata"]["name"], each["spec"]["template"]


POD = pytest.mark.parametrize(
    "template", [template for _, template in pods()], ids=[name for name, _ in pods()]
)
SERVICE = pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=COMPOSE["services"])


@SERVICE
def test_compose_takes_passwords_from_the_environment_and_does_not_start_without(
    service: dict[str, Any],
) -> None:
    named = {key: value for key, value in service["environment"].items() if SECRET.search(key)}
    assert named
    for key, value in named.items():
        assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), key


@POD
def test_kubernetes_takes_passwords_from_the_secret_that_the_docs_create(
    template: dict[str, Any],
) -> None:
    created = re.findall(
        r"--from-literal=([a-z-]+)=", (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    )
    for container in template["spec"]["containers"]:
        named = {each["name"]: each for each in container["env"] if SECRET.search(each["name"])}
        assert named
        for name, each in named.items():
            assert "value" not in each, name
            reference = each["valueFrom"]["secretKeyRef"]
            assert reference["name"] == "med-r1"
            assert reference["key"] in created


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_no_file_holds_a_password(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"kind: Secret\b", text)
    assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), "an address with a password in it"
    for line in text.splitlines():
        given = re.search(r"^\s*(?:ENV|ARG|export)?\s*(\w+)=(\S+)", line)
        assert not (given and SECRET.search(given[1])), line


def test_images_are_pinned_and_ours_has_the_version_of_the_project() -> None:
    images = {each["image"] for each in COMPOSE["services"].values()}
    images |= {
        container["image"] for _, template in pods() for container in template["spec"]["containers"]
    }
    images |= set(
        re.findall(r"^FROM (\S+)", (INFRA / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert {image for image in images if image.startswith("med-r1:")} == {f"med-r1:{VERSION}"}
    for image in images:
        assert re.fullmatch(r"[a-z0-9-]+:\d+\.\d+(\.\d+)?(-[a-z-]+)?", image), image
    renamed = read_yaml(INFRA / "kubernetes" / "kustomization.yaml")["images"]
    assert [(each["name"], each["newTag"]) for each in renamed] == [("med-r1", VERSION)]


def test_the_image_is_built_of_locked_requirements_and_runs_as_nobody_of_note() -> None:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    installs = [line for line in text.splitlines() if re.search(r"(pip install|pip sync) ", line)]
    assert installs
    assert all("--require-hashes" in line for line in installs)
    users = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    assert users
    assert all(int(number) > 0 for number in users[-1])


@SERVICE
def test_no_service_of_compose_is_root(service: dict[str, Any]) -> None:
    # an image of others begins as root unless told; ours does not, as the test above has it
    assert (
        service.get("user", "") == "postgres"
        if service["image"].startswith("postgres:")
        else service["image"].startswith("med-r1:")
    )
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("privileged")


@POD
def test_no_pod_is_root_or_may_become_it(template: dict[str, Any]) -> None:
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


def test_only_this_host_reaches_the_dashboard() -> None:
    published = [
        port for service in COMPOSE["services"].values() for port in service.get("ports", [])
    ]
    assert published == ["127.0.0.1:4200:4200"]
    assert all("type" not in each["spec"] for each in objects() if each["kind"] == "Service")
    assert not any(each["kind"] == "Ingress" or "hostNetwork" in str(each) for each in objects())


def test_background_services_are_in_the_one_servers_process() -> None:
    """Apart from it, and without Redis between them, task runs and events are lost."""
    deployment = next(each for each in objects() if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (
        1,
        {"type": "Recreate"},
    )
    for command in (container["args"], COMPOSE["services"]["server"]["command"]):
        assert command[:3] == ["prefect", "server", "start"]
        assert "--no-services" not in command


def test_workers_ask_pools_that_the_deployments_use() -> None:
    commands = [
        service["command"] for service in COMPOSE["services"].values() if "command" in service
    ]
    commands += [
        container["args"]
        for _, template in pods()
        for container in template["spec"]["containers"]
        if "args" in container
    ]
    asked = [command[1:] for command in commands if command[0] == "med-r1-worker"]
    assert sorted(asked) == [["gpu"], ["gpu"], ["local"], ["local"]]
    deployments = read_yaml(INFRA / "prefect.yaml")["deployments"]
    used = {each["work_pool"]["name"] for each in deployments}
    assert used == POOLS


def test_no_two_workers_share_a_workspace() -> None:
    mounted = [
        volume
        for service in COMPOSE["services"].values()
        for volume in service["volumes"]
        if volume.endswith(":/workspace")
    ]
    assert len(mounted) == len(set(mounted)) == 2
    for each in objects():
        if each["metadata"]["name"].startswith("worker-") and each["kind"] != "Service":
            assert each["kind"] == "StatefulSet", "only it gives every replica a volume of its own"
            assert [
                claim["metadata"]["name"] for claim in each["spec"]["volumeClaimTemplates"]
            ] == ["workspace"]
            assert "shareProcessNamespace" not in each["spec"]["template"]["spec"]


def test_a_gpu_worker_has_one_gpu_and_no_probe_restarts_a_worker() -> None:
    templates = dict(pods())
    for name in ("worker-local", "worker-gpu"):
        (container,) = templates[name]["spec"]["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == (
            1 if name == "worker-gpu" else 0
        )
        assert "livenessProbe" not in container, "a server that is away must not end a training"
    (device,) = COMPOSE["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert COMPOSE["services"]["worker-gpu"]["profiles"] == ["gpu"]


def test_compose_and_the_image_name_files_that_exist() -> None:
    build = COMPOSE["services"]["server"]["build"]
    context = INFRA / build["context"]
    assert (context / build["dockerfile"]).is_file()
    let_in = {
        line[1:]
        for line in (INFRA / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = set(
        re.findall(
            r"^COPY (?:--\S+ )?(\S+) ",
            (INFRA / "Dockerfile").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    assert copied == let_in
    assert all((context / path).is_file() for path in copied)
    sources = {
        volume.split(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service["volumes"]
    }
    paths = {each for each in sources if each.startswith(".")}
    assert paths == {"./postgres/init.sql", "../.git"}
    assert all((INFRA / path).exists() for path in paths)
    assert sources - paths == set(COMPOSE["volumes"])


def test_kustomize_has_all_manifests_and_their_parts_find_each_other() -> None:
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
    values = {literal.split("=")[0] for literal in settings["configMapGenerator"][0]["literals"]}
    used = {
        each["valueFrom"]["configMapKeyRef"]["key"]
        for _, template in pods()
        for container in template["spec"]["containers"]
        for each in container["env"]
        if "configMapKeyRef" in each.get("valueFrom", {})
    }
    assert used == values
