"""What `python -m xaiutils.claims` says: the summary, why, stale; and what it refuses."""

import shutil

import pytest
from conftest import CLAIM, FIGURE

from xaiutils import claims as command
from xaiutils.companion import ledger, provenance
from xaiutils.data import assets

RISES = {"verdict": "fails", "value": 0.2, "low": 0.1, "high": 0.3, "n": 20, "unit": "dB"}
OTHER = (
    CLAIM.replace('"rises"', '"falls"')
    .replace('"tiny"', '"tony"')
    .replace("paper = 2", "paper = 4")
)


@pytest.fixture
def project(make_project):
    """Project with a figure, two notebooks and a claim of each."""
    project = make_project(FIGURE, ledger=CLAIM + 'figure = "line"\n' + OTHER)
    shutil.copy(project.notebook("tiny"), project.root / "notebooks" / "tony.ipynb")
    return project


def main(*arguments, project=None):
    """Exit code of the command line."""
    try:
        return command.main(list(arguments), project)
    except SystemExit as stop:
        return stop.code


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_summary_counts_first_then_a_table_per_paper(project, write_results, capsys):
    write_results(project, claims={"rises": RISES})
    assert main(project=project) == 0
    assert capsys.readouterr().out == "wrote figures/CLAIMS.md\n"
    text = (project.root / "figures" / "CLAIMS.md").read_text()
    counts = {"holds": 0, "fails": 1, "inconclusive": 0, "test not valid": 0, "not run": 1}
    assert "".join(f"| {verdict} | {n} |\n" for verdict, n in counts.items()) in text
    first, second = text.split("## Paper 2")[1].split("## Paper 3")
    assert "[tiny](../notebooks/tiny.ipynb)" in first
    links = "[notebook tiny](../notebooks/tiny.ipynb) · [line](tiny/line.png)"
    assert f"| 0.2 dB [0.1, 0.3]<br>{links} | 20 | **fails** |" in first
    assert "`falls`" not in first
    assert (
        "| no record yet<br>[notebook tony](../notebooks/tony.ipynb) | – | **not run** |" in second
    )
    assert "Older than the code" not in text


def test_summary_judges_by_the_rule_of_today_and_names_old_records(project, write_results):
    write_results(project, claims={"rises": RISES})
    edit(project.notebook("tiny"), "points drawn", "points")
    edit(project.ledger, "threshold = 0.5", "threshold = 0.05")
    text = ledger.summary(project)
    assert "| holds | 1 |" in text
    assert "Older than the code (run `make figures`): tiny." in text


def test_summary_says_what_crosses_the_papers(project):
    edit(project.ledger, "paper = 4", "paper = 5")
    section = ledger.summary(project).split("\n## Across the four papers (this companion)\n")[1]
    assert "`falls`" in section


def test_why_says_all_that_stands_behind_a_verdict(project, write_results, capsys):
    write_results(project, claims={"rises": {**RISES, "cell": 3}})
    assert main("why", "rises", project=project) == 0
    shown = {line[:13].strip(): line[13:] for line in capsys.readouterr().out.splitlines()}
    assert shown["claim"] == "The line rises."
    assert shown["paper"] == "2, What does LIME really see in images?; Figure 1"
    assert shown["published"] == "1.0"
    assert shown["holds if"] == "slope above 0.5 (above: threshold 0.5)"
    assert shown["measured"] == "0.2 dB, interval [0.1, 0.3], n = 20"
    assert shown["verdict"] == "fails"
    assert shown["notebook"] == "notebooks/tiny.ipynb, code cell 3"
    assert shown["figure"] == "figures/tiny/line.png"
    assert shown["made from"].endswith(", 0 assets")
    assert shown["since then"] == "nothing changed"
    (project.root / "requirements.lock").write_text("numpy==3\n")
    main("why", "rises", project=project)
    assert "since then changed: requirements.lock (" in capsys.readouterr().out


def test_why_without_a_measurement_and_of_an_undefined_interval(project, write_results, capsys):
    main("why", "rises", project=project)
    shown = capsys.readouterr().out
    assert "measured   no record yet" in shown
    assert "made from" not in shown
    write_results(project, claims={"rises": {"verdict": "not run", "reason": "no GPU"}})
    main("why", "rises", project=project)
    assert "measured   no GPU\n  verdict    not run" in capsys.readouterr().out
    one = {**RISES, "verdict": "inconclusive", "low": None, "high": None, "n": 1}
    write_results(project, claims={"rises": one})
    main("why", "rises", project=project)
    shown = capsys.readouterr().out
    assert "interval [undefined, undefined], n = 1\n  verdict    inconclusive" in shown


def test_why_of_an_unknown_claim_names_close_ones(project, capsys):
    assert main("why", "rise", project=project) == 2
    assert capsys.readouterr().err == "error: no claim 'rise'; did you mean rises?\n"
    assert main("why", "xyz", project=project) == 2
    assert "figures/CLAIMS.md lists all" in capsys.readouterr().err


def test_stale_names_each_hash_that_changed(project, write_results, capsys, monkeypatch):
    (project.root / "notebooks" / "tony.ipynb").unlink()
    project.ledger.write_text(CLAIM)
    assert main("stale", project=project) == 1
    assert capsys.readouterr().out == "tiny: no results yet\n"
    write_results(project, claims={"rises": RISES})
    assert main("stale", project=project) == 1
    assert capsys.readouterr().out == "tiny: no result for figure line\n"
    write_results(project, "line")
    assert main("stale", project=project) == 0
    assert capsys.readouterr().out == "all results are current\n"
    edit(project.notebook("tiny"), "points drawn", "points")
    (project.root / "requirements.lock").write_text("numpy==3\n")
    assert main("stale", project=project) == 1
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert "requirements.lock (" in shown
    assert "notebook (" in shown
    assert "package (" not in shown


def test_names_of_what_is_to_be_run_again(project, write_results, capsys):
    def names():
        assert main("stale", "--names", project=project) == 0
        return capsys.readouterr().out.split()

    assert "tiny" in names()  # no results yet
    path = write_results(project, claims={})
    assert "tiny" not in names()
    path.write_text(path.read_text().replace("default", "faulted"))
    assert "tiny" in names()


def test_stale_looks_at_assets(project, write_results, capsys, monkeypatch):
    hashes = {**notebook_hashes(project), "assets": {"a.png": "1" * 64, "b.png": "2" * 64}}
    write_results(project, claims={"rises": RISES}, hashes=hashes)
    monkeypatch.setattr(assets, "hashes", lambda: {"a.png": "1" * 64})
    main("stale", project=project)
    assert "tiny: asset b.png (22222222, now none)" in capsys.readouterr().out

    def damaged():
        raise assets.AssetError("assets.toml is damaged")

    monkeypatch.setattr(assets, "hashes", damaged)
    assert main("stale", project=project) == 2
    assert capsys.readouterr().err == "error: assets.toml is damaged\n"


def notebook_hashes(project):
    return provenance.of_notebook(project, "tiny")


DAMAGE = {
    "number": lambda project, records: edit(records, '"value": 0.2', '"value": 0.29'),
    "verdict": lambda project, records: edit(records, '"fails"', '"holds"'),
    "half": lambda project, records: records.write_text(records.read_text()[:100]),
    "shape": lambda project, records: records.write_text("[1]"),
    "picture": lambda project, records: records.with_name("line.png").write_bytes(b"another"),
    "notebook": lambda project, records: project.notebook("tiny").write_text("{"),
    "cells": lambda project, records: edit(project.notebook("tiny"), '"cells"', '"cell"'),
    "ledger": lambda project, records: project.ledger.write_text("[[claim]"),
    "emptied": lambda project, records: project.ledger.write_text(""),
    "figure": lambda project, records: edit(project.ledger, '"line"', '"lines"'),
    "module": lambda project, records: edit(project.notebook("tiny"), "figures\\n", "nothing\\n"),
}


@pytest.mark.parametrize("arguments", [[], ["why", "rises"], ["stale"], ["numbers", "tiny"]])
@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_named_and_nothing_is_written(
    project, write_results, capsys, what, arguments
):
    write_results(project, "line")
    records = write_results(project, claims={"rises": RISES})
    DAMAGE[what](project, records)
    code = main(*arguments, project=project)
    shown = capsys.readouterr()
    if arguments[:1] == ["numbers"] and what in ("figure", "module", "emptied"):
        assert code == 0  # it asks neither
        return
    assert code == 2, shown
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert not (project.root / "figures" / "CLAIMS.md").exists()


def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(project, capsys):
    (project.root / "figures").write_text("a file of this name")
    assert main(project=project) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_says_what_each_command_does_and_the_exit_codes(capsys):
    assert main("--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("why", "stale", "numbers", "codes: 0; 1 if"))
    for name in ("why", "stale", "numbers"):
        assert main(name, "--help") == 0
        assert f"Example: xaiutils claims {name}" in capsys.readouterr().out
    assert main("wy") == 2
