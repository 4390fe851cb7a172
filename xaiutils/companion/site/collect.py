"""Write what Sphinx reads: notebooks, figures, ledger and start page, from what is committed.

``python -m xaiutils.companion.site.collect`` fills `build/site-source/`; nothing is run. The tour
is taken from where `site.tour` has run it, and left out where it has not.
"""

import base64
import html
import os
import posixpath
import re
import shutil
import struct
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import jinja2
import nbformat
import yaml

from xaiutils.companion import claims, ledger, provenance, readme, results
from xaiutils.companion.notebooks import Project, ProjectError, figure_names, first_line, read_text
from xaiutils.companion.site import tour

_LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_ABBREVIATIONS = ("LIME", "GANMEX")
_WIDE = 500  # pixels; a figure of one column of text has 396
_NEEDED = ("sphinx", "myst_nb", "pydata_sphinx_theme", "latex2mathml", "fontTools", "ziamath")


@dataclass(frozen=True)
class Figure:
    """A figure of a page, with the paths it has on the site."""

    notebook: str
    name: str
    alt: str
    question: str
    content: bytes

    @property
    def png(self):
        """Path of the picture."""
        return f"figures/{self.notebook}/{self.name}.png"

    @property
    def page(self):
        """Place in the page of its notebook."""
        return f"{self.notebook}.html#figure-{self.name}"

    @property
    def width(self):
        """Pixels, from the header of the PNG file."""
        return struct.unpack(">I", self.content[16:20])[0]

    @property
    def height(self):
        """Pixels, from the header of the PNG file."""
        return struct.unpack(">I", self.content[20:24])[0]

    def html(self):
        """The picture with links to itself and to its numbers."""
        kind = "picture wide" if self.width > _WIDE else "picture"
        numbers = self.png.removesuffix("png") + "json"
        return (
            f'<figure class="{kind}" id="figure-{self.name}">\n<div class="scroll">'
            f'<a href="{self.png}"><img class="dark-light" loading="lazy" src="{self.png}" '
            f'width="{self.width}" height="{self.height}" alt="{html.escape(self.alt)}"></a></div>'
            f'\n<figcaption><code>{self.name}</code> · <a href="{self.png}">full size</a> · '
            f'<a href="{numbers}">numbers, parameters and hashes</a></figcaption>\n</figure>\n'
        )


@dataclass(frozen=True)
class Page:
    """An executed notebook and its figures."""

    name: str
    notebook: nbformat.NotebookNode
    figures: list[Figure]

    @property
    def title(self):
        """First heading."""
        return self.notebook.cells[0].source.splitlines()[0].removeprefix("# ")

    @property
    def label(self):
        """Short name for the bar on top: "01_lime_limit" becomes "1 LIME limit"."""
        number, words = re.fullmatch(r"0*(\d*)_*(.*)", self.name).groups()
        words = words[:1].upper() + words[1:]
        upper = [w.upper() if w.upper() in _ABBREVIATIONS else w for w in words.split("_")]
        return " ".join([number, *upper]).strip()

    @property
    def summary(self):
        """Paper, question and answer: the paragraphs of the first cell that say so."""
        paragraphs = self.notebook.cells[0].source.split("\n\n")
        return "\n\n".join(
            p for p in paragraphs if p.startswith(("*Companion", "**The question", "**The answer"))
        )


def is_executed(notebook):
    """Whether every code cell has been run."""
    return all(c.execution_count for c in notebook.cells if c.cell_type == "code")


def check_notebook(name, notebook):
    """ProjectError unless a notebook has a title, and its outputs are those of one run of its code.

    Its text may have been rewritten since.
    """
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        raise ProjectError(f"{name}: its first cell must start with a title, '# ...'")
    mark = notebook.metadata.get("xaiutils")
    seal = mark.get(results.SEAL) if isinstance(mark, dict) else None
    if seal != results.notebook_seal(notebook):
        what = "are not as they were written" if seal else "are of an older format"
        raise ProjectError(
            f"notebooks/{name}.ipynb: code cells and outputs {what}; "
            f"run python -m xaiutils.run --update {name}"
        )


def take_figures(project, name, notebook):
    """Find the figures among the outputs, and put HTML with their alt texts in their place.

    The k-th picture of a cell belongs to its k-th call of ``figures.savefig``.

    Parameters
    ----------
    project : Project
    name : str
        Notebook.
    notebook : nbformat.NotebookNode
        Executed; its outputs are changed in place.

    Returns
    -------
    list of Figure

    Raises
    ------
    ProjectError
        If pictures and calls do not match, a picture or its alt text is not that of its record,
        there is no record, or a results file is damaged.
    """
    records = results.of_notebook(project, name)
    rows = re.findall(r"^\|[^|\n]*\| (`[\w`, ]+`) \| (.*?) *\|$", notebook.cells[0].source, re.M)
    questions = {name: text for names, text in rows for name in re.findall(r"\w+", names)}
    found = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        names = figure_names(nbformat.v4.new_notebook(cells=[cell]))
        pictures = [o for o in cell.outputs if any("image/" in m for m in o.get("data", {}))]
        where = f"{name}, cell {number}"
        if len(pictures) != len(names):
            raise ProjectError(
                f"{where}: {len(pictures)} pictures, but figures.savefig is called for "
                f"{', '.join(names) or 'none'}; run make notebooks"
            )
        for output, stem in zip(pictures, names, strict=True):
            record = records.get(stem)
            if record is None:
                raise ProjectError(f"{where}: there is no {stem}.json; run make notebooks")
            shown = output.get("metadata", {}).get("image/png", {}).get("alt")
            if record["alt"] != shown:
                raise ProjectError(
                    f"{where}: the picture {stem!r} says {shown!r}, "
                    f"{stem}.json says {record['alt']!r}; run make notebooks"
                )
            try:
                content = base64.b64decode(output.data["image/png"])
            except (LookupError, ValueError):
                content = b""
            if results.picture_hash(content) != record[results.PICTURE]:
                raise ProjectError(
                    f"{where}: the picture {stem!r} is not that of {stem}.json; run make notebooks"
                )
            question = re.sub(r" *\*\(.*?\)\*$|`", "", questions.get(stem, ""))
            found.append(Figure(name, stem, record["alt"], question, content))
            output.data = {"text/html": found[-1].html()}
            output.metadata = {}
    return found


def relink(text, folder, root, pages):
    """Links of a file in `folder`, as they are on the site; what is not there loses its link.

    Parameters
    ----------
    text : str
        Markdown; code in it is left alone. A picture that a link leads to is shown in its page.
    folder : str
        Where the file lies, relative to `root`; "" for `root` itself.
    root : Path
        Working copy.
    pages : list of Page

    Returns
    -------
    str

    Raises
    ------
    ProjectError
        If a link leads to nothing.
    """
    places = {f"notebooks/{page.name}.ipynb": f"{page.name}.ipynb" for page in pages}
    places |= {f"figures/{page.name}": f"{page.name}.ipynb" for page in pages}
    places |= {"figures/CLAIMS.md": "claims.md", "data/README.md": "data.md"}
    places |= {"CITATION.cff": "index.md#how-to-cite", "README.md": "index.md"}
    pictures = {figure.png: figure for page in pages for figure in page.figures}

    def place(match):
        image, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if image and path in pictures:
            return pictures[path].html()
        if path in pictures:
            return f'<a href="{pictures[path].page}">{label}</a>'
        if path in places:
            return f"[{label}]({places[path]}{'#' + anchor if anchor else ''})"
        if not (root / path).exists():
            raise ProjectError(f"{folder or '.'}: the link {target} leads to nothing")
        return label

    parts = _FENCE.split(text)
    return "".join(p if i % 2 else _LINK.sub(place, p) for i, p in enumerate(parts))


def badge(verdict):
    """A verdict, marked so that the style sheet can colour it."""
    return f"[{verdict}]{{.verdict .{verdict.replace(' ', '-')}}}"


def mark_verdicts(text):
    """Tables of claims with their verdicts as badges."""
    cell = rf"\| \*\*({'|'.join(claims.VERDICTS)})\*\*(?= \|)"
    return re.sub(cell, lambda match: f"| {badge(match[1])}", text)


def prepare(page, root, pages):
    """The notebook as Sphinx shall show it: code folded away, links and tables of the site."""
    players = 0
    for cell in page.notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relink(cell.source, "notebooks", root, pages)
            continue
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = mark_verdicts(data["text/markdown"])
            if "<audio" in data.get("text/html", ""):
                players += 1
                label = f'<audio aria-label="Sound {players}" '
                data["text/html"] = data["text/html"].replace("<audio ", label)
    return nbformat.writes(page.notebook)


def tour_pages(project, pages):
    """The executed tour as Sphinx shall show it, with its code, by file name; none if not run."""
    path = tour.executed(project)
    if not path.exists():
        return {}
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relink(cell.source, "notebooks/tour", project.root, pages)
    return {path.name: nbformat.writes(notebook)}


def cited(work):
    """One line of text and one BibTeX entry for a work in the terms of CITATION.cff."""
    people = [
        " ".join(filter(None, (a.get("given-names"), a.get("family-names")))) or a["name"]
        for a in work["authors"]
    ]
    where = work.get("collection-title", "")
    year = str(work.get("year", ""))
    version = f"version {work['version']}" if "version" in work else ""
    rest = ", ".join(filter(None, (where, version, year)))
    kind = {"conference-paper": "inproceedings", "software": "software"}.get(work["type"], "misc")
    first = work["authors"][0]
    key = first.get("family-names", "xaiutils").lower() + year
    fields = {
        "title": "{" + work["title"] + "}",
        "author": " and ".join(
            f"{a['family-names']}, {a['given-names']}"
            if "family-names" in a
            else f"{{{a['name']}}}"
            for a in work["authors"]
        ),
        "booktitle": where,
        "version": str(work.get("version", "")),
        "year": year,
    }
    lines = "".join(f",\n  {name} = {{{value}}}" for name, value in fields.items() if value)
    return f"{', '.join(people)}: *{work['title']}*. {rest}.", f"@{kind}{{{key}{lines}\n}}"


def start_page(project, pages, claims_page):
    """Markdown of the start page: what README.md says first, counts, figures, how to cite."""
    root = project.root
    introduction = read_text(root / "README.md").split("\n## ")[0]
    counts = dict(re.findall(rf"^\| ({'|'.join(claims.VERDICTS)}) \| (\d+) \|$", claims_page, re.M))
    try:
        citation = yaml.safe_load(read_text(root / "CITATION.cff"))
        entries = [cited(work) for work in (citation, *citation["references"])]
    except (yaml.YAMLError, AttributeError, LookupError, TypeError) as error:
        raise ProjectError(f"CITATION.cff cannot be used ({first_line(error)}); mend it") from None
    loader = jinja2.FileSystemLoader(os.path.dirname(__file__))
    return (
        jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined)
        .get_template("index.md.jinja")
        .render(
            introduction=relink(introduction, "", root, pages),
            badge=badge,
            counts=counts,
            tour=tour.NAME if tour.executed(project).exists() else None,
            total=sum(map(int, counts.values())),
            pages=pages,
            headlines=readme.headlines(project),
            citation=citation,
            works=[text for text, _ in entries],
            bibtex="\n\n".join(entry for _, entry in entries),
        )
    )


def main(project=None):
    """Fill `build/site-source/`; returns 0, or 2 if a package or something committed is amiss."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        install = "run pip install -r requirements-site.lock, or make site without VENV="
        print(f"error: {', '.join(missing)} not installed; {install}", file=sys.stderr)
        return 2
    project = project or Project(provenance.ROOT)
    root, target = project.root, project.root / "build" / "site-source"
    try:
        pages = []
        for name in project.names():
            notebook = project.read(name)
            if is_executed(notebook):
                check_notebook(name, notebook)
                pages.append(Page(name, notebook, take_figures(project, name, notebook)))
            else:
                print(f"{name}: has cells without outputs, left out")
        written = {"figures/CLAIMS.md": ledger.summary, "README.md": readme.updated}
        for name, text_of in written.items():
            if read_text(root / name) != text_of(project):
                raise ProjectError(f"{name} is not what the records say; run make claims")
        claims_page = read_text(root / "figures" / "CLAIMS.md")
        data = read_text(root / "data" / "README.md")
        files = {
            "claims.md": mark_verdicts(relink(claims_page, "figures", root, pages)),
            "data.md": relink(data, "data", root, pages),
            "index.md": start_page(project, pages, claims_page),
            **{f"{page.name}.ipynb": prepare(page, root, pages) for page in pages},
            **tour_pages(project, pages),
        }
    except ProjectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shutil.rmtree(target, ignore_errors=True)
    for name, text in files.items():
        provenance.write(target / name, text.encode())
    for figure in (figure for page in pages for figure in page.figures):
        provenance.write(target / "extra" / figure.png, figure.content)
        record = project.figures("default", figure.notebook) / f"{figure.name}.json"
        shutil.copy(record, (target / "extra" / figure.png).with_suffix(".json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
