"""The ledger: the rule gives the verdict, and only well-formed claims and records are taken."""

import json
import shutil

import pytest
from conftest import CLAIM

from xaiutils import intervals
from xaiutils.companion import claims, ledger, provenance
from xaiutils.companion.notebooks import ProjectError
from xaiutils.companion.results import INVALID

OTHER = (
    CLAIM.replace('"rises"', '"falls"')
    .replace('"tiny"', '"tony"')
    .replace("paper = 2", "paper = 4")
)
NAN = float("nan")
SECOND = CLAIM.replace('"rises"', '"second"').replace("published = 1.0\n", "")


@pytest.fixture
def project(make_project, monkeypatch):
    """Project with three claims, two of the running notebook `tiny`."""
    project = make_project(ledger=CLAIM + OTHER + SECOND)
    shutil.copy(project.notebook("tiny"), project.root / "notebooks" / "tony.ipynb")
    run = provenance.Run(
        root=str(project.root),
        notebook="tiny",
        profile="default",
        output=str(project.figures("default", "tiny")),
        hashes=provenance.input_hashes(project.root, project.read("tiny")),
    )
    run.save(project.root / "run.json")
    monkeypatch.setenv(provenance.VARIABLE, str(project.root / "run.json"))
    monkeypatch.setattr(claims, "_records", {})
    return project


def records(project):
    return json.loads((project.figures("default", "tiny") / "claims.json").read_text())


def claim(**rule):
    return claims.Claim("a", 1, "s", "s", {"text": "t", **rule}, "tiny")


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        ({"kind": "above", "threshold": 0.5}, 0.51, 0.9, "holds"),
        ({"kind": "above", "threshold": 0.5}, 0.5, 0.9, "inconclusive"),
        ({"kind": "above", "threshold": 0.5}, 0.1, 0.5, "fails"),
        ({"kind": "above", "threshold": 0.5}, 0.1, 0.51, "inconclusive"),
        ({"kind": "below", "threshold": 0.5}, 0.1, 0.49, "holds"),
        ({"kind": "below", "threshold": 0.5}, 0.1, 0.5, "inconclusive"),
        ({"kind": "below", "threshold": 0.5}, 0.5, 0.9, "fails"),
        ({"kind": "between", "low": -1, "high": 1}, -1, 1, "holds"),
        ({"kind": "between", "low": -1, "high": 1}, -1.1, 1, "inconclusive"),
        ({"kind": "between", "low": -1, "high": 1}, 0, 1.1, "inconclusive"),
        ({"kind": "between", "low": -1, "high": 1}, 1, 2, "inconclusive"),
        ({"kind": "between", "low": -1, "high": 1}, 1.1, 2, "fails"),
        ({"kind": "between", "low": -1, "high": 1}, -3, -1.1, "fails"),
        ({"kind": "between", "low": -1, "high": 1}, -3, 3, "inconclusive"),
        ({"kind": "above", "threshold": 0.5}, NAN, NAN, "inconclusive"),
        ({"kind": "below", "threshold": 0.5}, NAN, NAN, "inconclusive"),
        ({"kind": "between", "low": -1, "high": 1}, NAN, NAN, "inconclusive"),
        ({"kind": "above", "threshold": 0.5}, None, None, "inconclusive"),
        ({"kind": "above", "threshold": 0.5}, 0.6, NAN, "inconclusive"),
        ({"kind": "below", "threshold": 0.5}, NAN, 0.4, "inconclusive"),
    ],
)
def test_verdict_looks_at_the_whole_interval(rule, low, high, verdict):
    assert claim(**rule).verdict(low, high) == verdict


def test_an_estimate_without_cases_is_not_run(project):
    nothing = intervals.mean([])
    assert claims.record_estimate("rises", nothing, missing="none flipped") == "not run"
    some = intervals.Estimate(0.7, 0.6, 0.8, 20)
    verdict = claims.record_estimate("second", some, unit="dB")
    found = records(project)["claims"]
    assert found["rises"] == {"verdict": "not run", "reason": "none flipped"}
    expected = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 20, "unit": "dB", "verdict": verdict}
    assert found["second"] == expected


def test_record_writes_numbers_verdict_and_inputs(project):
    assert claims.record("rises", 2 / 3, 0.6, 0.7, n=20, unit="%") == "holds"
    assert claims.not_run("second", "needs a GPU ") == "not run"
    found = records(project)
    assert found["claims"] == {
        "rises": {
            "verdict": "holds",
            "value": 0.666667,
            "low": 0.6,
            "high": 0.7,
            "n": 20,
            "unit": "%",
        },
        "second": {"verdict": "not run", "reason": "needs a GPU"},
    }
    assert set(found["hashes"]) == {"notebook", "package", "requirements.lock", "assets"}


@pytest.mark.parametrize(
    ("arguments", "n", "message"),
    [
        (("unknown", 1, 1, 1), 1, "allowed: rises, second"),
        (("falls", 1, 1, 1), 1, "allowed: rises, second"),
        (("rises", 1, 1.1, 2), 1, "outside"),
        (("rises", 1, 0, 0.9), 1, "outside"),
        (("rises", float("nan"), 0, 1), 1, "finite"),
        (("rises", 1, 0, float("inf")), 1, "finite"),
        (("rises", 1, float("nan"), 2), 1, "finite"),
        (("rises", 1, 0, float("nan")), 1, "finite"),
        (("rises", 1, float("nan"), float("nan")), 2, "with n = 1 low and high"),
        (("rises", float("nan"), float("nan"), float("nan")), 1, "finite"),
        (("rises", float("inf"), float("nan"), float("nan")), 1, "finite"),
        (("rises", 1, 1, 1), 0, "positive whole"),
        (("rises", 1, 1, 1), 2.5, "positive whole"),
    ],
)
def test_record_refuses_what_is_no_measurement(project, arguments, n, message):
    with pytest.raises(ValueError, match=message):
        claims.record(*arguments, n=n)
    assert not project.figures("default", "tiny").exists()


def test_an_undefined_interval_of_one_unit_is_recorded_and_inconclusive(project):
    assert claims.record_estimate("rises", intervals.mean([0.7]), unit="dB") == "inconclusive"
    assert claims.record("second", 1, NAN, NAN, n=1) == "inconclusive"
    expected = {"value": 0.7, "low": None, "high": None, "n": 1, "unit": "dB"}
    assert records(project)["claims"]["rises"] == {"verdict": "inconclusive", **expected}
    assert "| 0.7 dB [undefined] | 1 | **inconclusive** |" in claims.table().data
    text = ledger.summary(project)
    assert "| inconclusive | 2 |" in text and "0.7 dB [undefined]<br>" in text


@pytest.fixture
def tested(project):
    """The same project, where "second" is tested by what "rises" says is a valid test."""
    text = project.ledger.read_text()
    project.ledger.write_text(text.replace('id = "second"', 'id = "second"\ntest = "rises"'))
    return project


@pytest.mark.parametrize(
    ("control", "verdict"),
    [((0.9, 0.8, 1.0), "holds"), ((0.1, 0.0, 0.2), INVALID), ((0.6, 0.4, 0.8), INVALID)],
)
def test_a_claim_has_a_verdict_only_where_its_test_is_valid(tested, control, verdict):
    claims.record("rises", *control, n=20)
    assert claims.record("second", 0.9, 0.8, 1.0, n=20) == verdict
    assert records(tested)["claims"]["second"]["verdict"] == verdict
    assert (
        f"| **{verdict}** | slope above 0.5; tested only if `rises` holds |" in claims.table().data
    )
    text = ledger.summary(tested)
    assert f"| {verdict} | {2 if verdict == 'holds' else 1} |" in text
    said = ledger.why(tested, "second")
    assert "test       valid only if rises holds: " in said and f"verdict    {verdict}" in said


def test_a_test_that_was_not_run_is_not_valid(tested):
    claims.not_run("rises", "no data")
    assert claims.record("second", 0.9, 0.8, 1.0, n=20) == INVALID


def test_a_claim_that_was_not_run_stays_so_without_a_valid_test(tested):
    claims.record("rises", 0.1, 0.0, 0.2, n=20)
    claims.not_run("second", "no data")
    assert "**not run**" in claims.table().data.splitlines()[3]


def test_the_test_is_recorded_first(tested):
    with pytest.raises(ValueError, match="second: record rises first"):
        claims.record("second", 0.9, 0.8, 1.0, n=20)
    assert not tested.figures("default", "tiny").exists()


@pytest.mark.parametrize("test", ['"third"', '"falls"', '"second"', "3", '["rises"]', '""'])
def test_a_test_is_a_claim_of_the_same_notebook_without_one(project, test):
    text = project.ledger.read_text()
    project.ledger.write_text(text.replace('id = "second"', f'id = "second"\ntest = {test}'))
    with pytest.raises(ProjectError, match=r"claim 'second': test must be .* allowed: rises"):
        claims.load(project.ledger)


def test_not_run_needs_a_reason(project):
    with pytest.raises(ValueError, match="reason"):
        claims.not_run("rises", " ")


def test_a_run_records_a_claim_once_but_a_reader_may_repeat_a_cell(project, monkeypatch):
    claims.record("rises", 1, 1, 1, n=1)
    with pytest.raises(ProjectError, match="twice"):
        claims.not_run("rises", "changed my mind")
    monkeypatch.delenv(provenance.VARIABLE)
    monkeypatch.setattr(provenance, "ROOT", project.root)
    assert claims.record("rises", 0, 0, 0, n=1) == "fails"
    path = project.root / "build/interactive/figures/claims.json"
    assert json.loads(path.read_text())["claims"]["rises"]["verdict"] == "fails"
    assert "`rises`" in claims.table().data
    assert "`second`" not in claims.table().data


def test_table_shows_every_claim_of_the_notebook(project):
    claims.record("rises", 0.5, 0.25, 0.75, n=20, unit="%")
    assert claims.table().data.splitlines()[2:] == [
        "| `rises` The line rises. | 1.0 (Figure 1) | 0.5 % [0.25, 0.75] | 20 | **inconclusive** "
        "| slope above 0.5 |",
        "| `second` The line rises. | – (Figure 1) | no record yet | – | **not run** "
        "| slope above 0.5 |",
    ]
    assert "`falls`" in claims.table("tony").data


def test_table_cells_survive_pipes_and_line_breaks(make_project, monkeypatch):
    ledger = CLAIM.replace("The line rises.", "|x|\\n grows")
    monkeypatch.setattr(provenance, "ROOT", make_project(ledger=ledger).root)
    assert "| `rises` \\|x\\| grows |" in claims.table("tiny").data


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "rises"', 'id = "Ri ses"', "id must match"),
        ("paper = 2", "paper = 6", "paper must be"),
        ('source = "Figure 1"', 'source = ""', "must be text"),
        ('id = "rises"', "id = 5", "id must match"),
        ("paper = 2", "paper = true", "paper must be"),
        ("paper = 2", "paper = [2]", "paper must be"),
        ("published = 1.0", "published = [1]", "published must be"),
        ("published = 1.0", "published = nan", "published must be"),
        ("published = 1.0", "published = true", "published must be"),
        ("published = 1.0", "publishd = 1.0", "publishd"),
        ("published = 1.0", 'figure = "../line"', "figure must be"),
        ('statement = "The line rises."\n', "", "statement"),
        ('kind = "above"', 'kind = "over"', "rule must be"),
        ("threshold = 0.5", "low = 0.5", "rule must be"),
        ("threshold = 0.5", 'threshold = "0.5"', "bounds of the rule"),
        ("threshold = 0.5", "threshold = nan", "bounds of the rule"),
        ("threshold = 0.5", "threshold = true", "bounds of the rule"),
        ("threshold = 0.5", "threshold = -inf", "bounds of the rule"),
        ('"above", threshold = 0.5', '"between", low = 1, high = 0.5', "low at most high"),
        ('"above", threshold = 0.5', '"between", low = 0, high = nan', "bounds of the rule"),
        ('kind = "above"', 'kind = ["above"]', "rule must be"),
        ("published = 1.0", 'figure = "claims"', "figure must be"),
        ("[[claim]]", "[[claims]]", r"claims is not allowed; allowed: \[\[claim\]\]"),
        ("[[claim]]", "[claim]", "must be a list of tables"),
        ("[[claim]]", "[[claim]", r"claims.toml is no TOML \(.*line 1"),
        ('notebook = "tiny"', 'notebook = "tony"', "no notebook 'tony'; allowed: tiny"),
        (', text = "slope above 0.5"', "", "rule must be"),
    ],
)
def test_ledger_takes_only_well_formed_claims(tmp_path, old, new, message):
    assert old in CLAIM
    (tmp_path / "tiny.ipynb").touch()
    (tmp_path / "claims.toml").write_text(CLAIM.replace(old, new))
    with pytest.raises(ProjectError, match=message) as error:
        claims.load(tmp_path / "claims.toml")
    assert "\n" not in str(error.value)


def test_a_ledger_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(ProjectError, match=r"claims\.toml cannot be read"):
        claims.load(tmp_path / "claims.toml")
    (tmp_path / "claims.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProjectError, match=r"claims\.toml cannot be read"):
        claims.load(tmp_path / "claims.toml")


def test_ledger_ids_are_unique(tmp_path):
    (tmp_path / "claims.toml").write_text(CLAIM + CLAIM)
    with pytest.raises(ProjectError, match="twice"):
        claims.load(tmp_path / "claims.toml")
