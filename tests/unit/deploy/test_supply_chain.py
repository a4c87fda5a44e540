"""What tells others how PRISM is kept safe, against what it tells of."""

import re
import subprocess

import yaml
from deployment import ROOT, TARGETS, compose, image

from prism.settings import AdminSettings

SECURITY = (ROOT / "SECURITY.md").read_text()


def test_every_port_is_told_with_what_it_lets_one_do() -> None:
    told = {(who.split(",")[0], int(port)) for who, port in re.findall(r"^\| (\w+) (\d{4}) \|", SECURITY, re.MULTILINE)}
    listening = {(target.removesuffix("-cpu"), port) for target in TARGETS if target not in ("policy-gpu", "jobs")
                 for port in image(target).ports}  # fmt: skip
    assert told == listening | {("Redis", 6379)}
    assert "PRISM_ADMIN_TOKEN" in SECURITY
    assert "admin_token" in AdminSettings.model_fields


def test_what_is_pinned_is_proposed_anew() -> None:
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    places = {(entry["package-ecosystem"], entry["directory"]) for entry in updates}
    assert places == {("pip", "/"), ("docker", "/deploy/docker"), ("docker-compose", "/")}
    assert (ROOT / "constraints.txt").is_file()
    assert (ROOT / "deploy" / "docker" / "Dockerfile").is_file()
    assert any("build" not in service for service in compose().values())


def test_the_bill_of_materials_is_made_by_a_pinned_tool_of_its_own() -> None:
    script = ROOT / "scripts" / "sbom"
    assert re.search(r"^TOOL=cyclonedx-bom==\d+(\.\d+)+$", script.read_text(), re.MULTILINE)
    assert "cyclonedx" not in (ROOT / "pyproject.toml").read_text()
    refused = subprocess.run([script, "/dev/null", "/nonexistent"], capture_output=True, text=True)
    assert (refused.returncode, "run make setup first" in refused.stderr) == (1, True)
