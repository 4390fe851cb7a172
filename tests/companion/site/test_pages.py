"""What a reader's browser makes of the pages in `build/site/`."""

import json
from urllib.parse import unquote, urldefrag, urljoin

import nbformat
import pytest

from xaiutils.companion import claims, readme
from xaiutils.companion.notebooks import Project
from xaiutils.companion.provenance import ROOT
from xaiutils.companion.site import mathml

SITE = ROOT / "build" / "site"
PAGES = sorted(path.name for path in SITE.glob("*.html"))
NOTEBOOKS = [name for name in PAGES if (ROOT / "notebooks" / name).with_suffix(".ipynb").exists()]
each_page = pytest.mark.parametrize("name", PAGES)
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)

# Pictures below the window are fetched late; here they are wanted now.
LOAD_PICTURES = """async () => {
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode()));
}"""

# What sticks out of the window, other than in a box that scrolls within itself.
TOO_WIDE = """() => [...document.querySelectorAll("header *, article, article *")].filter((e) => {
  const scrolls = ".scroll, .gallery, .math-block, .pst-scrollable-table-container, .output, pre";
  return e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility()
    && !e.parentElement.closest(scrolls);
}).map((e) => `${e.tagName} ${e.className}: ${e.textContent.trim().slice(0, 40)}`)"""


def alt_texts(notebook):
    folder = ROOT / "figures" / notebook
    return {
        f"figures/{notebook}/{path.stem}.png": json.loads(path.read_text(encoding="utf-8"))["alt"]
        for path in folder.glob("*.json")
        if path.stem != "claims"
    }


def all_alt_texts():
    return {k: v for name in NOTEBOOKS for k, v in alt_texts(name.removesuffix(".html")).items()}


def shown_alt_texts(page, selector):
    images = page.locator(selector).evaluate_all(
        "all => all.map(image => [image.getAttribute('src'), image.alt])"
    )
    assert len(dict(images)) == len(images)
    return dict(images)


def colour(page, selector="body"):
    return page.locator(selector).evaluate("e => getComputedStyle(e).backgroundColor")


def test_there_are_pages():
    assert {"index.html", "claims.html", "data.html", "search.html", "ten_calls.html"} <= set(PAGES)
    assert NOTEBOOKS


@each_page
def test_a_page_loads_without_errors_and_asks_nobody_else(open_page, base, name):
    page = open_page(name)
    page.evaluate(LOAD_PICTURES)
    page.wait_for_load_state("networkidle")
    assert page.errors == []
    foreign = [u for u in page.requests if not u.startswith((base, "data:", "blob:"))]
    assert foreign == []
    assert len(page.requests) > 3


@each_page
def test_pictures_are_loaded_and_described(open_page, name):
    page = open_page(name)
    page.evaluate(LOAD_PICTURES)
    images = page.locator("img").evaluate_all("all => all.map(i => [i.src, i.alt, i.naturalWidth])")
    for source, alt, width in images:
        assert width > 0, source
        assert len(alt) >= 40, source


def test_the_start_page_shows_some_figures_of_each_notebook_and_leads_to_them(open_page):
    page = open_page("index.html")
    shown = shown_alt_texts(page, ".gallery img")
    assert shown.items() <= all_alt_texts().items()
    chosen = {name: h.figures for name, h in readme.headlines(Project(ROOT)).items()}
    assert set(shown) == {f"figures/{name}/{f}.png" for name, all_ in chosen.items() for f in all_}
    first = page.locator(".gallery a").first
    target = first.get_attribute("href").split("#")[1]
    first.click()
    page.wait_for_load_state("networkidle")
    assert page.url.endswith(f"#{target}")
    assert page.locator(f"figure#{target} img").is_visible()


@each_notebook
def test_a_notebook_shows_its_figures_with_their_alt_texts(open_page, name):
    page = open_page(name)
    assert shown_alt_texts(page, "figure.picture img") == alt_texts(name.removesuffix(".html"))


def test_the_start_page_says_what_was_measured(open_page):
    text = open_page("index.html").locator("article").inner_text()
    found = readme.headlines(Project(ROOT)).values()
    said = [f"Measured. {h.measured} {h.verdict}" for h in found if h.measured]
    assert said
    assert all(sentence in text for sentence in said)


def test_a_claim_leads_to_its_notebook_and_figure(open_page):
    rows = open_page("claims.html").locator("tr:has(span.verdict)")
    links = dict(
        rows.evaluate_all(
            "all => all.map(row => [row.querySelector('code').textContent,"
            " [...row.querySelectorAll('a')].map(a => a.getAttribute('href'))])"
        )
    )
    ledger = claims.load(Project(ROOT).ledger)
    assert set(links) == set(ledger)
    for key, claim in ledger.items():
        page = f"{claim.notebook}.html"
        figure = [f"{page}#figure-{claim.figure}"] if claim.figure else []
        assert links[key] == ([page, *figure] if page in NOTEBOOKS else []), key


def test_counts_of_verdicts_are_those_of_the_ledger(open_page):
    def counts(page):
        rows = page.locator("table").first.locator("tbody tr").all_inner_texts()
        return {row.split("\t")[0].strip(): int(row.split("\t")[1]) for row in rows}

    page = open_page("claims.html")
    start = counts(open_page("index.html"))
    assert start == counts(page)
    assert set(start) == {"holds", "fails", "inconclusive", "test not valid", "not run"}
    ledger = (ROOT / "figures" / "CLAIMS.md").read_text(encoding="utf-8")
    assert page.locator("span.verdict").count() == ledger.count("\n| `") == sum(start.values())


@each_notebook
def test_players_have_a_sound_and_play_it(open_page, name):
    notebook = nbformat.read((ROOT / "notebooks" / name).with_suffix(".ipynb"), as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    wanted = sum("<audio" in o.get("data", {}).get("text/html", "") for o in outputs)
    page = open_page(name)
    players = page.locator("audio")
    assert players.count() == wanted
    for player in players.all():
        player.evaluate(
            "async p => { p.muted = true; await p.play();"
            " await new Promise(r => p.addEventListener('timeupdate', r)); }"
        )
        found = player.evaluate("p => [p.currentSrc.slice(0, 11), p.duration, p.currentTime]")
        assert found[0] == "data:audio/"
        assert found[1] > 0.5
        assert found[2] > 0
    assert len(set(players.evaluate_all("all => all.map(p => p.ariaLabel)"))) == wanted


def test_some_notebook_has_players(open_page):
    assert sum(open_page(name).locator("audio").count() for name in NOTEBOOKS) >= 9


def test_search_finds_a_term_and_leads_to_its_page(open_page):
    page = open_page("index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("Banzhaf")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=Banzhaf*")
    result = page.locator("ul.search li a").filter(has_text="What does LIME converge to?").first
    result.click()
    page.wait_for_load_state("networkidle")
    assert "/02_lime_limit.html" in page.url
    assert page.get_by_text("Banzhaf value").first.is_visible()
    assert page.errors == []


def test_search_of_a_word_that_is_nowhere_finds_nothing(open_page):
    page = open_page("search.html?q=xylophonist")
    page.get_by_text("did not match any documents").wait_for()
    assert page.locator("ul.search li").count() == 0


def test_links_inside_lead_to_files_and_places_that_exist(open_page, base):
    links, places = set(), {}
    for name in PAGES:
        page = open_page(name)
        found = page.locator("a[href]").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        links |= {(name, urljoin(base + name, href)) for href in found}
        places[name] = set(page.locator("[id]").evaluate_all("all => all.map(e => e.id)"))
    inside = {(name, link.removeprefix(base)) for name, link in links if link.startswith(base)}
    assert len(inside) > 100
    for name, link in sorted(inside):
        path, place = map(unquote, urldefrag(link))
        path = path or "index.html"
        assert (SITE / path).is_file(), f"{name}: {link}"
        assert not place or place in places[path], f"{name}: {link}"


def test_dark_and_light_can_be_chosen_and_stay(open_page, base):
    page = open_page("index.html", color_scheme="light")
    light = colour(page)
    page.locator("button.theme-switch-button").locator("visible=true").click()
    page.locator("[data-mode-value=dark], [data-mode=dark] >> visible=true").first.click()
    dark = colour(page)
    assert dark != light
    page.goto(base + NOTEBOOKS[0])
    assert colour(page) == dark


@each_page
def test_a_dark_system_gets_dark_pages_and_figures_keep_their_paper(open_page, name):
    page = open_page(name, color_scheme="dark")
    assert max(map(int, colour(page).removeprefix("rgb(").rstrip(")").split(","))) < 64
    for image in page.locator("figure.picture img").all():
        style = image.evaluate(
            "i => [getComputedStyle(i).backgroundColor, getComputedStyle(i).filter]"
        )
        assert style == ["rgb(255, 255, 255)", "none"]


@pytest.mark.parametrize("width", [320, 390])
@each_page
def test_a_phone_never_scrolls_sideways(open_page, name, width):
    page = open_page(name, width=width, is_mobile=True, has_touch=True)
    for cell in page.locator("details.hide").all():
        cell.evaluate("e => e.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE) == []


def test_the_menu_of_a_phone_leads_to_other_pages(open_page):
    page = open_page(NOTEBOOKS[0], width=390, is_mobile=True, has_touch=True)
    link = page.get_by_role("link", name="Claims", exact=True).locator("visible=true")
    assert link.count() == 0
    page.locator("button.primary-toggle").click()
    link.first.click()
    page.wait_for_url("**/claims.html")


@each_notebook
def test_labels_of_figures_can_be_read_on_a_phone(open_page, name):
    page = open_page(name, width=390, is_mobile=True, has_touch=True)
    scales = page.locator("figure.picture img").evaluate_all(
        "all => all.map(i => i.getBoundingClientRect().width / i.getAttribute('width'))"
    )
    # Seven points at 120 pixels an inch are 11.7 pixels; nine of them can be read.
    assert min(scales) >= 0.77


@each_notebook
def test_figures_are_sharp_on_a_laptop(open_page, name):
    scales = (
        open_page(name)
        .locator("figure.picture img")
        .evaluate_all(
            "all => all.map(i => i.getBoundingClientRect().width / i.getAttribute('width'))"
        )
    )
    assert scales
    assert all(abs(scale - 1) < 0.01 for scale in scales)


@each_notebook
def test_formulas_are_set_in_the_font_of_the_site(open_page, name):
    page = open_page(name)
    boxes = page.locator("article math").evaluate_all(
        "all => all.map(m => { const b = m.getBoundingClientRect(); return [b.width, b.height]; })"
    )
    assert len(boxes) > 20
    assert min(min(box) for box in boxes) > 2
    fonts = page.evaluate("[...document.fonts].map(f => `${f.family} ${f.status}`)")
    assert any("Math" in font and "unloaded" not in font for font in fonts)
    # What was not rendered would stand there as it was typed.
    text = page.locator("article").inner_text()
    assert "$" not in text
    assert "\\frac" not in text


def test_a_fraction_stands_above_its_denominator(open_page):
    boxes = (
        open_page("02_lime_limit.html")
        .locator("mfrac")
        .first.evaluate(
            "f => [...f.children].map(c => c.getBoundingClientRect()).map(b => [b.top, b.bottom])"
        )
    )
    assert boxes[0][1] <= boxes[1][0] + 2


@each_notebook
def test_code_is_folded_and_can_be_shown(open_page, name):
    page = open_page(name)
    cells = page.locator("div.cell details.hide")
    assert cells.count() > 5
    code = cells.first.locator("pre").first
    assert not code.is_visible()
    page.get_by_role("button", name="Show all code").click()
    assert all(cell.evaluate("e => e.open") for cell in cells.all())
    assert code.is_visible()
    page.get_by_role("button", name="Hide all code").click()
    assert not code.is_visible()


def test_an_unknown_command_in_a_formula_stops_the_build():
    with pytest.raises(ValueError, match="nosuchcommand"):
        mathml.render(r"\nosuchcommand{x} + \big\nosuchfence", "inline")


@pytest.mark.parametrize("fence", [r"\Big\{", r"\big\lvert", r"\Big\|"])
def test_sized_fences_are_symbols(fence):
    assert "\\" not in mathml.render(fence + " x", "block")
