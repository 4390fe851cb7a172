"""What is committed: pins, notebooks and figures keep the project's rules."""

import ast
import json
import os
import subprocess

import pytest
import yaml

from xaiutils.companion import claims, notebooks, provenance, results

PROJECT = notebooks.Project(provenance.ROOT)
NAMES = PROJECT.names()
each_notebook = pytest.mark.parametrize("name", NAMES)


def code(name):
    return [node for tree in notebooks.code_trees(PROJECT.read(name)) for node in ast.walk(tree)]


def test_conda_and_pip_get_the_same_pins():
    lock = (PROJECT.root / "requirements.lock").read_text().splitlines()
    conda = yaml.safe_load((PROJECT.root / "environment.yml").read_text())
    assert conda["dependencies"][2]["pip"] == lock
    assert len(lock) > 100


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-site.lock", "requirements-peers.lock"]
)
def test_lock_pins_every_line_and_names_no_host_or_path(name):
    for line in (PROJECT.root / name).read_text().splitlines():
        assert "==" in line.split(";")[0], line
        assert "/" not in line, line


def test_the_web_pages_change_no_other_pin():
    lines = {
        name: (PROJECT.root / name).read_text().splitlines()
        for name in ("requirements.lock", "requirements-site.lock")
    }
    # A package may stand in both for other versions of Python, never with another version.
    pins = {name: {line.split(";")[0].strip() for line in lines[name]} for name in lines}
    named = {name: {pin.split("==")[0] for pin in pins[name]} for name in pins}
    both = named["requirements.lock"] & named["requirements-site.lock"]
    shared = {p for p in pins["requirements-site.lock"] if p.split("==")[0] in both}
    assert shared <= pins["requirements.lock"]
    assert {"sphinx", "playwright"} <= named["requirements-site.lock"]


def test_make_lists_its_targets_first():
    # Without what an outer make hands down to an inner one.
    env = {key: value for key, value in os.environ.items() if "MAKE" not in key}
    done = subprocess.run(["make"], cwd=PROJECT.root, env=env, capture_output=True, text=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    wanted = "help figures test verify notebooks lab bench claims lint clean retrain lock "
    assert listed == set((wanted + "findings peers site test-site").split())


def test_findings_stand_alone_and_can_be_run():
    scripts = list((PROJECT.root / "findings").glob("*.sh"))
    assert scripts
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert os.access(path, os.X_OK) and "set -euo pipefail" in text, path.name
        assert len(text.splitlines()) <= 80 and "xaiutils" not in text, path.name
        assert "trap 'rm -rf" in text and "==" in text, path.name  # tidy, pinned


def test_there_is_a_notebook_and_a_ledger():
    assert NAMES
    assert claims.load(PROJECT.ledger)


@each_notebook
def test_notebook_is_clean(name):
    path = PROJECT.notebook(name)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size <= 2.5e6
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "xaiutils"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}, cell["id"]
        assert "injected-parameters" not in cell["metadata"].get("tags", []), cell["id"]
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", cell["id"]
            assert output.get("name") != "stderr", cell["id"]


@each_notebook
def test_notebook_was_run_from_top_to_bottom(name):
    cells = [c for c in PROJECT.read(name).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_notebook
def test_code_and_outputs_of_a_notebook_are_those_of_one_run(name):
    notebook = PROJECT.read(name)
    assert notebook.metadata["xaiutils"] == {"sha256": results.notebook_seal(notebook)}


@each_notebook
def test_no_text_of_a_notebook_waits_to_be_written(name):
    for cell in PROJECT.read(name).cells:
        assert not (cell.cell_type == "markdown" and "PLACEHOLDER" in cell.source), cell.id


@each_notebook
def test_notebook_defines_nothing_and_writes_only_figures(name):
    for node in code(name):
        assert not isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        ), ast.unparse(node)
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), ast.unparse(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert "warnings" not in ast.unparse(node)
        # The only way out is figures.savefig: no other writer, no path.
        if isinstance(node, ast.Attribute) and node.attr in ("savefig", "to_csv", "open"):
            assert ast.unparse(node) == "figures.savefig"


@each_notebook
def test_notebook_has_parameters_seed_device_and_profiles(name):
    found = notebooks.parameters(PROJECT.read(name))
    assert found["seed"].annotation == "int"
    assert (found["device"].annotation, found["device"].default) == ("str", "auto")
    for profile in notebooks.PROFILES:
        PROJECT.overrides(profile, name, found)


@each_notebook
def test_notebook_has_a_check_cell_with_output(name):
    cells = [c for c in PROJECT.read(name).cells if notebooks.has_tag(c, "nbval-check-output")]
    assert cells
    assert all(cell.outputs for cell in cells)


@each_notebook
def test_committed_figures_are_those_the_notebook_draws(name):
    found = results.of_notebook(PROJECT, name)
    assert set(found) - {"claims"} == set(notebooks.figure_names(PROJECT.read(name)))
    assert all(len(record["alt"]) >= 40 for stem, record in found.items() if stem != "claims")


@each_notebook
def test_every_claim_of_a_notebook_has_a_record(name):
    own = {c.id for c in claims.load(PROJECT.ledger).values() if c.notebook == name}
    assert set(results.records(results.of_notebook(PROJECT, name))) == own
