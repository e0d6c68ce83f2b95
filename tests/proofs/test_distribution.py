"""What is built for users: the source distribution, the wheel, and the README's way to install them."""

from __future__ import annotations

import email.message
import email.parser
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text()
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = (".ci", "airflow_jobmon_provider", "benchmarks", "dev", "docs", "example_dags", "tests")
NAME = "airflow-provider-jobmon"
FILES = ("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml")


def run(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command that has to succeed, and return what it wrote to standard output."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def uv(*arguments: str, folder: Path) -> str:
    return run([sys.executable, "-m", "uv", *arguments], folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the source distribution, and the wheel that was built from that."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", str(folder), str(PROJECT), folder=folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path) -> Path:
    """Return the folder that the source distribution unpacks to."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(built, filter="data")
    return built / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def metadata(request: pytest.FixtureRequest, built: Path, unpacked: Path) -> email.message.Message:
    """Return what a package index reads."""
    if request.param == "sdist":
        text = (unpacked / "PKG-INFO").read_text()
    else:
        (wheel,) = built.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            text = archive.read(name).decode()
    return email.parser.Parser().parsestr(text)


def urls(metadata: email.message.Message) -> dict[str, str]:
    return dict(entry.split(", ", 1) for entry in metadata.get_all("Project-URL", []))


def test_the_metadata_says_where_the_project_is(metadata: email.message.Message) -> None:
    """Airflow's page of providers links to "Documentation"; without one, it makes an address up."""
    found = urls(metadata)
    assert found.keys() == {"Homepage", "Source", "Documentation", "Issues", "Changelog"}
    assert all(url.startswith(found["Homepage"]) for url in found.values())


def test_the_long_description_is_the_readme_with_absolute_links(metadata: email.message.Message) -> None:
    description = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown"
    relative = [link for link in LINK.findall(README) if not link.startswith("https://")]
    assert relative
    assert [link for link in LINK.findall(description) if not link.startswith("https://")] == []
    base = f"{urls(metadata)['Homepage']}/blob/main/"
    assert [link for link in LINK.findall(description) if link.startswith(base)] == [
        base + link for link in relative
    ]
    assert description.replace(f"]({base}", "](").strip() == README.strip()


def test_the_source_distribution_has_what_the_readme_links_to(unpacked: Path) -> None:
    relative = {link.partition("#")[0] for link in LINK.findall(README) if not link.startswith("https://")}
    assert [link for link in sorted(relative) if not (unpacked / link).exists()] == []


def files_of(project: Path) -> set[str]:
    found = (path for folder in FOLDERS for path in (project / folder).rglob("*"))
    files = {path.relative_to(project) for path in found if path.is_file()}
    return {str(path) for path in files if "__pycache__" not in path.parts} | set(FILES)


def test_the_source_distribution_has_every_file_that_people_work_with(unpacked: Path) -> None:
    assert files_of(unpacked) == files_of(PROJECT)
    assert [name for name in FILES if not (unpacked / name).is_file()] == []


def test_every_make_target_of_the_readme_is_in_the_source_distribution(unpacked: Path) -> None:
    targets = set(re.findall(r"`make ([a-z-]+)", README))
    assert targets >= {"demo", "lint", "sandbox", "test"}
    helped = run(["make", "help"], unpacked)
    assert targets <= {line.split("\t")[0] for line in helped.splitlines()}
    recipes = run(["make", "--dry-run", *sorted(targets)], unpacked)
    modules = set(re.findall(r"-m ((?:dev|benchmarks|tests)[.\w]*)", recipes))
    assert modules >= {"dev.demo", "dev.jobmon_sandbox"}
    places = [unpacked / module.replace(".", "/") for module in modules]
    assert [place for place in places if not (place.is_dir() or place.with_suffix(".py").is_file())] == []


def test_style_and_layers_can_be_checked_in_the_source_distribution(unpacked: Path) -> None:
    scripts = Path(sys.executable).parent
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["lint-imports"]):
        run([str(scripts / command[0]), *command[1:]], unpacked)


def commands_to_install() -> list[str]:
    section = README.partition("\n## Install\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    return [command for block in blocks for command in block.splitlines()]


def test_the_readmes_commands_install_the_provider_into_a_fresh_environment(
    unpacked: Path, tmp_path: Path
) -> None:
    """With pip itself; only what it would download is there before, by uv, which is quicker by minutes."""
    commands = commands_to_install()
    installs = [command for command in commands if command.startswith("pip install ")]
    assert len(installs) == 4  # from the clone and from the wheel, each also with the extra
    run([sys.executable, "-m", "venv", str(tmp_path)], unpacked)
    python = tmp_path / "bin" / "python"
    wanted = ["--constraint", str(PROJECT / "dev" / "constraints.txt"), ".[ssh]"]
    backend = ["hatchling", "hatch-fancy-pypi-readme"]
    uv("pip", "install", "--quiet", "--python", str(python), *wanted, *backend, folder=unpacked)
    uv("pip", "uninstall", "--quiet", "--python", str(python), NAME, folder=unpacked)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PIP_NO_BUILD_ISOLATION": "0"}  # it means: no isolation
    for command in commands:
        run(["bash", "-c", command], unpacked, environment)
        if command in installs:
            run([str(python), "-c", "import airflow_jobmon_provider.get_provider_info"], tmp_path)
            uv("pip", "uninstall", "--quiet", "--python", str(python), NAME, folder=unpacked)
