"""What packages and hosts read of the project says the same as the code."""

import pathlib
import re
import tomllib

import pytest

import brh_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_one_version():
    assert f"\nversion: {brh_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == brh_jax.__version__


def test_every_package_that_ships_is_typed():
    ships = [name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    assert [name for name in ships if not (ROOT / name / "py.typed").is_file()] == []


def test_readme_has_the_two_commands_that_ci_runs():
    assert len(re.findall(r"```sh\n(pip install [^\n]*)\n```", (ROOT / "README.md").read_text())) == 2


def test_the_workflow_calls_what_is_run_here_and_a_report_asks_for_the_machine():
    assert "run: bash .ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()
    assert "python -m brh_jax.info" in (ROOT / ".github/ISSUE_TEMPLATE/fault.yml").read_text()


@pytest.mark.parametrize("folder", ["README.md", "CONTRIBUTING.md", "docs"])
def test_links_between_files_lead_somewhere(folder):
    pages = [ROOT / folder] if (ROOT / folder).is_file() else sorted((ROOT / folder).rglob("*.md"))
    for page in pages:
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"


def test_every_page_has_its_place():
    """`mkdocs build --strict` says so too, where mkdocs is installed."""
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
