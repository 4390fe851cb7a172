"""Results files: what was damaged or edited by hand is named, whatever it is and whoever asks."""

import base64
import json

import nbformat
import pytest
from conftest import CLAIM, FIGURE

from xaiutils.companion import ledger, provenance, results, runner
from xaiutils.companion.notebooks import ProjectError

RISES = {"verdict": "fails", "value": 0.2, "low": 0.1, "high": 0.3, "n": 20, "unit": ""}
NOT_RUN = {"verdict": "not run", "reason": "no GPU"}


@pytest.fixture
def project(make_project):
    return make_project("1 + 1")


def refused(project, message):
    with pytest.raises(ProjectError, match=message) as error:
        results.of_notebook(project, "tiny")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("run make figures ONLY=tiny")


def test_what_a_run_wrote_is_read(project, write_results):
    assert results.of_notebook(project, "tiny") == {}
    assert results.records({}) == {}
    one = {**RISES, "low": None, "high": None, "n": 1}
    written = {"rises": RISES, "one": one, "none": NOT_RUN | {"cell": 2}}
    write_results(project, claims=written)
    write_results(project, "line")
    found = results.of_notebook(project, "tiny")
    assert set(found) == {"claims", "line"}
    assert results.records(found) == written
    assert found["line"]["data"] == {"y": [0.0]}


def test_equal_contents_have_equal_bytes_and_spaces_do_not_count(project, write_results):
    content = {"b": [1, 2.5], "a": {"x": None, "y": "é"}}
    assert results.sealed(content) == results.sealed(dict(content))
    path = write_results(project, claims={"rises": RISES})
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=4).replace("\n", "\r\n"))
    assert results.records(results.of_notebook(project, "tiny")) == {"rises": RISES}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"value": 0.2', '"value": 0.21', r"claims\.json is not as it was written"),
        ('"fails"', '"holds"', r"claims\.json is not as it was written"),
        ('"n": 20', '"n": 2', r"claims\.json is not as it was written"),
        ('"sha256"', '"sha"', r"claims\.json has no sha256, it is of an older format"),
        ('"profile"', "profile", r"claims\.json is no JSON \(Expecting property name"),
        ('"high": 0.3', '"high": 1e999', r"claims\.json is not as it was written"),
        ('"value": 0.2', '"value": NaN', r"claims\.json is no JSON \(NaN is no JSON\)"),
        ('{\n "notebook"', '[{\n "notebook"', r"claims\.json is no JSON"),
    ],
)
def test_an_edited_or_damaged_record_is_named(project, write_results, old, new, message):
    path = write_results(project, claims={"rises": RISES})
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    refused(project, message)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"claims', b"\xff\xfe", b"[" * 100_000])
def test_a_half_written_or_foreign_file_is_named(project, content):
    path = project.figures("default", "tiny") / "claims.json"
    provenance.write(path, content)
    refused(project, r"figures/tiny/claims\.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 0.25}, r"rises: value 0\.2 lies outside its interval \[0\.25, 0\.3\]"),
        ({"high": 0.1}, "outside its interval"),
        ({"low": 0.4}, "outside its interval"),
        ({"low": None}, r"interval \[None, 0\.3\] has one end only"),
        ({"low": None, "high": None}, "no interval, but n = 20"),
        ({"value": "0.2"}, r"claims\.rises\.value: '0\.2' is not of type 'number'"),
        ({"value": True}, "True is not of type 'number'"),
        ({"value": None}, "None is not of type 'number'"),
        ({"n": 0}, "0 is less than the minimum"),
        ({"n": 2.5}, "2.5 is not of type 'integer'"),
        ({"unit": None}, "None is not of type 'string'"),
        ({"verdict": "maybe"}, "'maybe' is not one of"),
        ({"reason": "no GPU"}, "Additional properties are not allowed"),
        ({"more": 1}, r"Additional properties are not allowed \('more'"),
    ],
)
def test_a_record_that_contradicts_itself_is_named_although_it_is_sealed(
    project, write_results, change, message
):
    path = write_results(project, claims={"rises": RISES})
    content = json.loads(path.read_text())
    content["claims"]["rises"] |= change
    del content["sha256"]
    path.write_bytes(results.sealed(content))
    refused(project, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"claims": {"rises": 3}}, "3 is not of type 'object'"),
        ({"claims": [RISES]}, "is not of type 'object'"),
        ({"claims": {"rises": {"verdict": "holds", "reason": "x"}}}, "'not run' was expected"),
        ({"claims": {"rises": {"verdict": "not run", "reason": " "}}}, "does not match"),
        ({"claims": {}, "notebook": "tony"}, "is of notebook 'tony', not of 'tiny'"),
        ({"claims": {}, "profile": "smoke"}, "is of profile 'smoke', not of 'default'"),
        ({"claims": {}, "hashes": {}}, "hashes: 'notebook' is a required property"),
        ({}, "'claims' is a required property"),
    ],
)
def test_a_file_of_another_shape_or_run_is_named(project, write_results, content, message):
    write_results(project, **content)
    refused(project, message)


def test_a_picture_belongs_to_its_record(project, write_results):
    path = write_results(project, "line")
    png = path.with_suffix(".png")
    png.write_bytes(b"another picture")
    refused(project, r"line\.png is not as it was written: its sha256 is not that in line\.json")
    png.unlink()
    refused(project, r"line\.png cannot be read \(No such file")
    write_results(project, "line")
    path.rename(path.with_name("dot.json"))
    refused(project, r"dot\.json is the record of figure 'line'")
    path.with_name("dot.json").unlink()
    refused(project, r"line\.png has no line\.json beside it")


def test_a_figure_cannot_point_outside_its_folder(project, write_results):
    path = write_results(project, "line")
    path.write_bytes(results.sealed({**json.loads(path.read_text()), "figure": "../x/line"}))
    refused(project, r"is the record of figure '\.\./x/line'")


def test_the_copy_that_make_takes_for_done_is_to_be_deleted(project, write_results):
    write_results(project, claims={"rises": 3})
    provenance.write(project.executed("default", "tiny"), b"{}")
    refused(project, r"delete .*build/default/tiny\.ipynb and run make figures ONLY=tiny$")


def test_a_run_of_damaged_files_is_made_again(make_project):
    project = make_project("from xaiutils.companion import claims\n1 + 1", "print('a\\nb')")
    copy = runner.execute(project, "tiny", seed=3)
    whole = copy.read_text()

    def finished():
        return runner.is_finished(runner.plan(project, "tiny", seed=3))

    assert finished()
    for text in (whole[:200], "{}", "[]", "", whole.replace("a\\n", "c\\n")):
        copy.write_text(text)
        assert not finished()
    copy.write_text(whole)
    assert finished()
    # Sealed, but of an asset that is another one by now.
    hashes = {**provenance.of_notebook(project, "tiny"), "assets": {"gone.wav": "0" * 64}}
    stamp = {"notebook": "tiny", "profile": "default-seeds", "parameters": {}, "hashes": hashes}
    records = copy.with_name("claims.json")
    records.write_bytes(results.sealed({**stamp, "claims": {}}))
    assert not finished()
    hashes["assets"] = {}
    records.write_bytes(results.sealed({**stamp, "claims": {}}))
    assert finished()
    for content in (
        "{",
        "[]",
        "5",
        '{"foo": 1}',
        '{"claims": null}',
        records.read_text().replace('"sha256": "', '"sha256": "0'),
    ):
        records.write_text(content)
        assert not finished()


def test_what_a_kernel_wrote_passes_every_check(make_project, capsys):
    record = 'claims.record("rises", 0.7, 0.6, 0.8, n=n, unit="dB")'
    project = make_project(FIGURE, record, ledger=CLAIM + 'figure = "line"\n')
    runner.update(project, "tiny")
    found = results.of_notebook(project, "tiny")
    assert results.records(found)["rises"]["cell"] == 3
    notebook = project.read("tiny")
    assert notebook.metadata["xaiutils"] == {"sha256": results.notebook_seal(notebook)}
    shown = notebook.cells[1].outputs[0].data["image/png"]
    assert results.picture_hash(base64.b64decode(shown)) == found["line"]["png_sha256"]
    assert ledger.main([], project) == 0
    assert ledger.main(["stale"], project) == 0
    assert ledger.main(["why", "rises"], project) == 0
    shown = capsys.readouterr().out
    assert "notebook   notebooks/tiny.ipynb, code cell 3\n" in shown
    assert "since then nothing changed\n" in shown


def test_the_seal_of_a_notebook_holds_code_and_outputs_but_no_text():
    cells = [
        nbformat.v4.new_markdown_cell("# A"),
        nbformat.v4.new_code_cell("x = 1\nx", execution_count=1),
    ]
    cells[1].outputs = [nbformat.v4.new_output("stream", text="1\n2\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    seal = results.notebook_seal(notebook)
    assert results.notebook_seal(nbformat.reads(nbformat.writes(notebook), 4)) == seal
    cells[0].source = "# B"
    assert results.notebook_seal(notebook) == seal
    cells[1].outputs[0].text = "1\n3\n"
    assert results.notebook_seal(notebook) != seal
