"""The built pages on a local server, and a browser to look at them."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import sync_playwright

from xaiutils.companion.provenance import ROOT

SITE = ROOT / "build" / "site"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def base():
    """Address of the pages, with a slash at its end."""
    if not (SITE / "index.html").exists():
        pytest.exit("no pages in build/site/; run make site", returncode=1)
    handler = functools.partial(Quiet, directory=SITE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.exit(
            f"no browser found, tried {', '.join(BROWSERS)}; install one "
            "(Debian: apt install chromium)",
            returncode=1,
        )
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path)
        yield found
        found.close()


@pytest.fixture
def open_page(browser, base):
    """Function that opens a page of the site in a fresh profile of the browser."""
    contexts = []

    def open_one(name, width=1366, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        # What is said while the page loads; console errors and requests are judged by the tests.
        page.errors, page.requests = [], []
        page.on("console", lambda m: m.type in ("error", "warning") and page.errors.append(m.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("requestfailed", lambda request: page.errors.append(f"failed: {request.url}"))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(base + name)
        page.evaluate("document.fonts.ready")
        return page

    yield open_one
    for context in contexts:
        context.close()
