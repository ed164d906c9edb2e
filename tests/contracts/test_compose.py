"""The development stack, read by Docker Compose itself: it is valid, pinned, and closed to the network.

No container is started. `docker-compose config` needs no Docker engine; the binary comes with the
development dependencies.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.config import Settings

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
COMPOSE = Path(sys.executable).with_name("docker-compose")


def compose(file: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMPOSE, "--file", file, "--project-directory", ROOT, "config", *args],
        capture_output=True,
        text=True,
        check=False,
    )


def resolved(file: Path) -> dict[str, Any]:
    """The project as Compose understands it."""
    read = compose(file, "--format", "json")
    assert read.returncode == 0, read.stderr
    return json.loads(read.stdout)


def open_ports(project: dict[str, Any]) -> list[str]:
    """Ports that are published beyond this machine."""
    return [
        f"{name}:{port['published']}"
        for name, service in project["services"].items()
        for port in service.get("ports", [])
        if port.get("host_ip") != "127.0.0.1"
    ]


def loose_images(project: dict[str, Any]) -> list[str]:
    """Images whose tag may mean another release tomorrow."""
    full = r"[\w./-]+:v?\d+\.\d+\.\d+"
    postgres = r"postgres:\d{2}\.\d+"  # its versions have two parts
    return [
        service["image"]
        for service in project["services"].values()
        if not re.fullmatch(f"{full}|{postgres}", service["image"])
    ]


@pytest.fixture(scope="module")
def project():
    return resolved(FILE)


@pytest.fixture
def planted(tmp_path):
    """Writes the file anew with one text replaced."""

    def plant(right: str, wrong: str) -> Path:
        text = FILE.read_text()
        assert right in text
        file = tmp_path / "docker-compose.yml"
        file.write_text(text.replace(right, wrong, 1))
        return file

    return plant


def test_compose_accepts_the_file():
    read = compose(FILE, "--quiet")

    assert read.returncode == 0, read.stderr
    assert read.stdout + read.stderr == ""


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        pytest.param("    image: redis", "    imagine: redis", "imagine", id="unknown key"),
        pytest.param("service_healthy", "service_happy", "condition", id="unknown condition"),
        pytest.param("- redis-data:/data", "- redis-dta:/data", "redis-dta", id="undefined volume"),
        pytest.param("      prometheus:\n        cond", "      prom:\n        cond", "prom", id="no service"),
    ],
)
def test_compose_catches_a_planted_fault(planted, right, wrong, said):
    read = compose(planted(right, wrong), "--quiet")

    assert read.returncode != 0
    assert said in read.stderr


def test_every_port_is_published_on_loopback_only(project, planted):
    assert {name for name, service in project["services"].items() if service.get("ports")} == set(
        project["services"]
    )
    assert open_ports(project) == []
    assert open_ports(resolved(planted("127.0.0.1:5432:5432", "5432:5432"))) == ["postgres:5432"]
    assert open_ports(resolved(planted("127.0.0.1:3000", "0.0.0.0:3000"))) == ["grafana:3000"]


def test_every_image_is_pinned_to_a_release(project, planted):
    image = project["services"]["redis"]["image"]

    assert loose_images(project) == []
    assert loose_images(resolved(planted(image, "redis:8"))) == ["redis:8"]
    assert loose_images(resolved(planted(image, "redis"))) == ["redis"]


def test_every_service_has_a_health_check_and_keeps_its_data(project):
    volumes = {
        name: [mount["source"] for mount in service["volumes"] if mount["type"] == "volume"]
        for name, service in project["services"].items()
    }

    assert [name for name, service in project["services"].items() if "healthcheck" not in service] == []
    assert volumes == {name: [f"{name}-data"] for name in project["services"]}
    assert set(project["volumes"]) == {f"{name}-data" for name in project["services"]}


def test_the_stores_are_those_of_the_default_settings(project):
    postgres, redis = project["services"]["postgres"], project["services"]["redis"]
    account = postgres["environment"]
    port = postgres["ports"][0]["published"]

    assert Settings().postgres_url == (
        f"postgres://{account['POSTGRES_USER']}:{account['POSTGRES_PASSWORD']}"
        f"@localhost:{port}/{account['POSTGRES_DB']}?sslmode=disable"
    )
    assert Settings().redis_addr == f"redis://localhost:{redis['ports'][0]['published']}/0"


def test_redis_keeps_what_it_was_told(project):
    command = project["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options == {
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--maxmemory-policy": "noeviction",
    }


def test_prometheus_reaches_the_processes_on_the_host(project):
    service = project["services"]["prometheus"]
    config = yaml.safe_load((ROOT / "prometheus.yml").read_text())
    targets = [
        target
        for job in config["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    ]

    assert targets == [f"host.docker.internal:{port}" for port in (2112, 2113, 2114, 2115)]
    assert Settings().metrics_addr[1] == 2112
    assert service["extra_hosts"] == ["host.docker.internal=host-gateway"]


def test_the_provisioned_paths_are_mounted(project):
    def mounts(name: str) -> dict[str, str]:
        binds = [mount for mount in project["services"][name]["volumes"] if mount["type"] == "bind"]
        assert all(mount["read_only"] for mount in binds)
        return {mount["target"]: str(Path(mount["source"]).relative_to(ROOT)) for mount in binds}

    [provider] = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/scheduler.yml").read_text())[
        "providers"
    ]
    [source] = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]

    assert mounts("prometheus") == {
        "/etc/prometheus/prometheus.yml": "prometheus.yml",
        "/etc/prometheus/alerts.yml": "alerts.yml",
    }
    assert mounts("grafana") == {
        "/etc/grafana/provisioning": "grafana/provisioning",
        provider["options"]["path"]: "grafana/dashboards",
    }
    assert source["url"] == "http://prometheus:9090"
    assert project["services"]["prometheus"]["ports"][0]["target"] == 9090
    assert [path.name for path in (ROOT / "grafana/dashboards").iterdir()] == ["observability.json"]
