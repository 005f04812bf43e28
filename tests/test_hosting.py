"""What runs the project elsewhere: workflows and containers can be read, and what they call exists."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DEVCONTAINER = ROOT / ".devcontainer" / "devcontainer.json"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
ENGINES = ("docker", "podman")


def read_workflow(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def list_commands() -> list[str]:
    """Every command in the workflows, the Dockerfile and the file of the development container."""
    jobs = [job for path in WORKFLOWS for job in read_workflow(path)["jobs"].values()]
    told = json.loads(DEVCONTAINER.read_text(encoding="utf-8"))
    continued = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    lines = [
        *(step["run"] for job in jobs for step in job["steps"] if "run" in step),
        told["postCreateCommand"],
        *re.findall(r"(?m)^RUN (.*)$", continued),
        *re.findall(r"(?m)^# (docker .*?)(?:  .*)?$", DOCKERFILE),
    ]
    return [command.strip() for line in lines for command in re.split(r"\n|&&|;;", line)]


def list_makes() -> list[list[str]]:
    """The words behind every `make`."""
    found = [
        re.search(r"\bmake (?!/)([a-z]+(?: [A-Z_]+=(?:\"[^\"]*\"|\S+))*)$", one) for one in list_commands()
    ]
    return [re.sub(r'"[^"]*"', "quoted", match[1]).split() for match in found if match]


def test_what_they_call_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^(\w+):", makefile))
    variables = set(re.findall(r"(?m)^(\w+) \?=", makefile))
    makes = list_makes()
    assert {words[0] for words in makes} >= {"install", "test", "book"}
    for target, *settings in makes:
        assert target in targets
        assert {setting.partition("=")[0] for setting in settings} <= variables, (target, settings)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_holds_its_jobs_in_and_grants_little(path: Path):
    workflow = read_workflow(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert {"runs-on", "steps"} <= set(job), name
        assert set(job.get("permissions", {})) <= {"pages", "id-token"}, name
        assert set(job.get("env", {})) <= {"PIP_OPTIONS", "BOOK_URL"}, "nothing reads another"
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert re.fullmatch(r"[\w/-]+@v\d+", step.get("uses", "actions/checkout@v4")), step
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"]), name


def test_the_published_folder_is_the_one_that_the_engine_writes():
    steps = read_workflow(ROOT / ".github" / "workflows" / "book.yml")["jobs"]["build"]["steps"]
    (folder,) = [step["with"]["path"] for step in steps if "path" in step.get("with", {})]
    assert folder == "runs/workshop/book/_build/html"
    assert "book/_build/html/index.html" in (ROOT / "Snakefile").read_text(encoding="utf-8")


def test_every_place_has_the_same_python():
    (conda,) = re.findall(r"python=([\d.]+)", (ROOT / "environment.yml").read_text(encoding="utf-8"))
    texts = [*(path.read_text(encoding="utf-8") for path in (*WORKFLOWS, DEVCONTAINER)), DOCKERFILE]
    binder = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text(encoding="utf-8"))
    assert f"python={conda}" in binder["dependencies"]
    for text in texts:
        versions = re.findall(r'python(?:-version: "|s?:)(\d+\.\d+)', text)
        assert versions and set(versions) == {conda}


def test_binder_installs_what_make_installs():
    build = (ROOT / "binder" / "postBuild").read_text(encoding="utf-8")
    installed = re.findall(r"pip install --no-cache-dir (.*)", build)
    makefile = (
        (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(PIP_OPTIONS) ", "").replace(",dev]", "]")
    )
    assert len(installed) == 2 and all(words in makefile for words in installed)
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


def test_a_container_takes_the_project_and_leaves_out_what_is_large_or_private():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "runs", "data"} <= set(ignored)
    assert "USER reader" in DOCKERFILE, "nothing runs as root"


def find_engine() -> str:
    """A container engine that answers, or nothing."""
    for name in filter(shutil.which, ENGINES):
        if subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    return ""


def test_the_containers_system_builds():
    engine = find_engine()
    if not engine:
        pytest.skip("no container engine answers")
    subprocess.run([engine, "build", "--target", "system", ROOT], check=True)
