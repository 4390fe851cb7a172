"""What a result is said to be made from: the code a notebook imports, its cells and the lock."""

import nbformat
import pytest

from xaiutils.companion import provenance
from xaiutils.companion.notebooks import Project, ProjectError

WRITERS = ("claims", "figures", "kernel", "notebooks", "provenance")


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of empty modules."""
    folder = tmp_path / "package"
    modules = {
        ".": ("low", "mid", "other"),
        "companion": (*WRITERS, "run"),
        "studies": ("first", "second"),
    }
    for inner, names in modules.items():
        (folder / inner).mkdir(parents=True, exist_ok=True)
        for name in ("__init__", *names):
            (folder / inner / f"{name}.py").touch()
    (tmp_path / "requirements.lock").touch()
    monkeypatch.setattr(provenance, "__file__", str(folder / "companion" / "provenance.py"))
    return folder


@pytest.fixture
def counts(package):
    """Function: does a file count for a notebook of these cells?"""

    def counts(file, *cells):
        def value():
            return provenance.input_hashes(package.parent, notebook(*cells))["package"]

        before, text = value(), (package / file).read_text()
        (package / file).write_text(text + "# changed\n")
        after = value()
        (package / file).write_text(text)
        assert value() == before
        return after != before

    return counts


@pytest.mark.parametrize(
    "cell",
    [
        "import xaiutils.mid",
        "import numpy, xaiutils.mid as m",
        "from xaiutils import other, mid",
        "from xaiutils import (\n    mid as m,\n)",
        "from xaiutils.mid import something",
        "x = 1\nif x:\n    from xaiutils import mid",
        "%matplotlib inline\nfiles = !ls\nfrom xaiutils import mid\nmid?",
        "%%capture out\n%%time\nfrom xaiutils import mid",
    ],
)
def test_a_module_counts_however_a_cell_imports_it(counts, cell):
    assert counts("mid.py", "y = 2", cell)
    assert not counts("low.py", "y = 2", cell)


@pytest.mark.parametrize(
    "statement",
    [
        "import xaiutils.low",
        "from xaiutils import other, low",
        "from xaiutils.low import f",
        "from . import low",
        "from .low import f",
        "def f():\n    from xaiutils import low\n    return low",
        "class A:\n    def f(self):\n        import xaiutils.low",
    ],
)
def test_modules_count_through_one_another(counts, package, statement):
    (package / "mid.py").write_text(statement + "\n")
    assert counts("low.py", "from xaiutils import mid")
    assert not counts("low.py", "x = 'from xaiutils import mid'")
    assert not counts("studies/first.py", "from xaiutils import mid")


def test_a_chain_of_imports_may_be_long_and_circular(counts, package):
    (package / "studies" / "first.py").write_text("from xaiutils import mid\n")
    (package / "mid.py").write_text("from xaiutils import other\n")
    (package / "other.py").write_text("def f():\n    from xaiutils.studies import first\n")
    cell = "from xaiutils.studies.first import f"
    assert counts("other.py", cell)
    assert not counts("low.py", cell)


def test_packages_count_with_their_modules_but_not_the_other_way_round(counts, package):
    assert counts("studies/__init__.py", "from xaiutils.studies.first import f")
    assert counts("__init__.py", "x = 1")
    assert not counts("studies/__init__.py", "from xaiutils import mid")
    assert not counts("studies/second.py", "from xaiutils import studies")
    assert not counts("studies/second.py", "from xaiutils.studies import first")
    # An import in `__init__.py` is made with every import of a module below.
    (package / "studies" / "__init__.py").write_text("from .second import helper\n")
    assert counts("studies/second.py", "from xaiutils.studies import first, helper")


@pytest.mark.parametrize("name", WRITERS)
def test_what_writes_the_results_always_counts(counts, name):
    assert counts(f"companion/{name}.py", "x = 1")
    assert not counts("companion/run.py", "x = 1")


def test_a_new_or_a_renamed_module_counts_where_it_is_imported(package):
    def hashed(*cells):
        return provenance.input_hashes(package.parent, notebook(*cells))["package"]

    cell = "from xaiutils import mid"
    first = hashed(cell)
    (package / "new.py").touch()
    assert hashed(cell) == first
    assert hashed(cell, "from xaiutils import new") != first
    assert hashed("from xaiutils import other") != first  # as empty as the other one


def test_without_a_notebook_the_whole_package_counts(package):
    values = set()
    for text in ("x = 1\n", "x = 2\n"):
        (package / "studies" / "second.py").write_text(text)
        values.add(provenance.input_hashes(package.parent)["package"])
    (package / "studies" / "second.py").rename(package / "studies" / "third.py")
    values.add(provenance.input_hashes(package.parent)["package"])
    assert len(values) == 3


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("from xaiutils import mid, figurs", "imports xaiutils.figurs, but xaiutils has no such"),
        ("import xaiutils.nope.inner", "imports xaiutils.nope, but xaiutils has"),
        ("%%time\nfrom xaiutils.nope import f", "imports xaiutils.nope, but xaiutils has"),
        ("from xaiutils.studies import third", r"xaiutils\.studies has.*allowed: first, second$"),
        ("import xaiutils.mid.f", r"xaiutils\.mid has no such module; allowed: none"),
    ],
)
def test_a_module_that_does_not_exist_is_named_with_its_cell(package, cell, message):
    with pytest.raises(ProjectError, match=f"^code cell 2 .*{message}"):
        provenance.input_hashes(package.parent, notebook("x = 1", cell))


def test_a_module_that_imports_what_does_not_exist_is_named(package):
    (package / "mid.py").write_text("from xaiutils import gone\n")
    with pytest.raises(ProjectError, match=r"^xaiutils\.mid imports xaiutils\.gone, but"):
        provenance.input_hashes(package.parent, notebook("from xaiutils import mid"))


@pytest.mark.parametrize(
    "cell", ["%%bash\nls | grep 'x", "x = (", "import numpy.nope", "import xaiutil"]
)
def test_cells_that_import_nothing_of_the_package_are_let_pass(package, cell):
    plain = provenance.input_hashes(package.parent, notebook("x = 1"))
    found = provenance.input_hashes(package.parent, notebook(cell))
    assert found["package"] == plain["package"]
    assert found["notebook"] != plain["notebook"]


def test_hash_follows_the_code_cells_and_nothing_else(tmp_path):
    def hashes(code, text="", outputs=(), lock=b"a\nb\n"):
        (tmp_path / "requirements.lock").write_bytes(lock)
        cells = [
            nbformat.v4.new_markdown_cell(text),
            nbformat.v4.new_code_cell(code, outputs=list(outputs)),
        ]
        return provenance.input_hashes(tmp_path, nbformat.v4.new_notebook(cells=cells))

    first = hashes("x = 1")
    output = nbformat.v4.new_output("stream", text="1")
    assert hashes("x = 1", "from xaiutils import lime", [output], b"a\r\nb\r\n") == first
    assert hashes("x = 2")["notebook"] != first["notebook"]
    changed = hashes("x = 1", lock=b"a\nc\n")
    assert changed["requirements.lock"] != first["requirements.lock"]
    assert changed["package"] == first["package"]


def test_records_are_current_until_a_module_they_need_changes(make_project, monkeypatch, package):
    project = make_project("from xaiutils import mid")
    recorded = provenance.input_hashes(project.root, project.read("tiny"))
    (package / "other.py").write_text("x = 1\n")
    assert provenance.is_current(recorded, project, "tiny")
    (package / "mid.py").write_text("x = 1\n")
    assert not provenance.is_current(recorded, project, "tiny")
    (package / "mid.py").unlink()
    with pytest.raises(ProjectError, match=r"^tiny: code cell 2 imports xaiutils\.mid, but"):
        provenance.is_current(recorded, project, "tiny")


def test_notebooks_of_this_project_need_their_studies_and_not_those_of_others():
    project = Project(provenance.ROOT)
    modules = provenance._modules(provenance.ROOT / "xaiutils")
    cells = [c.source for c in project.read("02_lime_limit").cells if c.cell_type == "code"]
    needed = {name.removeprefix("xaiutils.") for name in provenance._needed(modules, cells)}
    assert {
        "studies.limit.facts",
        "studies.limit.models",
        "limit",
        "perturb",
        "data.assets",
    } <= needed
    assert not {"studies.fidelity_study", "fidelity", "attack", "studies.adversarial"} & needed
