"""Files that lie below an address one by one, served from this machine; copies of them at hand."""

import hashlib
import http.server
import io
import shutil
import threading
import zipfile
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from xaiutils.data import assets, datasets, registry

CONTENT = {"n01_a.JPEG": b"a" * 900, "n02_b's.JPEG": b"b" * 5000, "n03_c.JPEG": b"c" * 70_000}
LABELS = dict(zip(CONTENT, (0, 2, 999), strict=True))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def wheel(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("toys/one.bin", content)
    return buffer.getvalue()


class Site:
    """A web server on this machine, a registry of the files it offers, an empty cache."""

    def __init__(self, folder, content):
        self.content, self.requests, self.spoil = dict(content), [], {}
        self.folder, self.cache, self.registry = folder, folder / "cache", folder / "assets.toml"
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = unquote(self.path).removeprefix("/at/commit/")
                site.requests.append(name)
                body = site.content.get(name)
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", len(body or b""))
                self.end_headers()
                self.wfile.write(site.spoil.get(name, lambda b: b)(body or b""))

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{self.server.server_port}/at/commit/"
        self.whole = wheel(b"one")
        self.registry.write_text(
            f"""[imagenet-photographs]
title = "toys"\naddress = "{address}"\ntable = "table.txt"\nbytes = 10\ndefault = false
licence = "none"\nsource = "a test"\ncitation = "none"
[toys]
title = "toys"\npackage = "toys"\nversion = "1.0"\nfilename = "toys-1.0-py3-none-any.whl"
bytes = 10\nsha256 = "{sha256(self.whole)}"\ndefault = true
licence = "MIT"\nsource = "a test"\ncitation = "none"
[toys.files]
"one.bin" = {{ member = "toys/one.bin", sha256 = "{sha256(b"one")}" }}
"""
        )
        lines = [f"{label} {name} {sha256(content[name])}\n" for name, label in LABELS.items()]
        (folder / "table.txt").write_text("".join(lines))

    def paths(self, names=tuple(LABELS)):
        return assets.paths(names, registry=self.registry, cache=self.cache)

    def take(self, folder, names=tuple(LABELS)):
        assets.take(folder, names, registry=self.registry, cache=self.cache)

    def cached(self):
        """Everything in the cache but locks."""
        return sorted(f.name for f in self.cache.rglob("*") if f.is_file() and f.name != ".lock")

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def make_site(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "_used", {})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sites = []

    def make(content=CONTENT):
        sites.append(Site(tmp_path, content))
        return sites[-1]

    yield make
    sites[0].stop()


@pytest.fixture
def site(make_site):
    return make_site()


def refused(call, *patterns):
    with pytest.raises(assets.AssetError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        assert pattern in message, message


def test_each_file_is_fetched_once_and_only_if_asked_for(site):
    first, *others = LABELS
    assert site.paths([first])[0] == site.cache / "imagenet-photographs" / first
    assert site.requests == [first]
    files = site.paths()
    assert [file.read_bytes() for file in files] == list(CONTENT.values())
    assert site.requests == [first, *others]
    site.stop()
    assert site.paths() == files
    assert assets.path(first, registry=site.registry, cache=site.cache) == files[0]


def test_the_table_is_what_counts_as_used(site):
    site.paths([next(iter(LABELS))])
    assert assets.used() == {
        "imagenet-photographs": sha256((site.folder / "table.txt").read_bytes())
    }


def test_a_download_that_breaks_off_goes_on_where_it_stopped(site):
    *first, last = LABELS
    site.spoil[last] = lambda body: body[: len(body) // 2]
    kept = "(2 of 3 files were fetched and are kept)"
    refused(site.paths, repr(last), "cannot fetch http://127.0.0.1", "try again", kept)
    assert site.cached() == first
    del site.spoil[last], site.requests[:]
    site.paths()
    assert site.requests == [last]
    assert site.cached() == [*first, last]


def test_ctrl_c_leaves_what_is_complete(site, monkeypatch):
    first, second, _ = LABELS
    real = assets.downloads.fetch_file

    def interrupted(session, collection, name, target):
        real(session, collection, name, target)
        if name == second:
            raise KeyboardInterrupt

    monkeypatch.setattr(assets.downloads, "fetch_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        site.paths()
    assert site.cached() == [first]


def test_another_content_is_refused(site):
    first, second, _ = LABELS
    site.content[second] = b"B" * 5000
    hashes = f"expected sha256 {sha256(CONTENT[second])}", sha256(b"B" * 5000)
    refused(site.paths, repr(second), "wrong hash", *hashes, "(1 of 3 files")
    assert site.cached() == [first]


def test_a_file_that_is_gone_says_what_to_do(site):
    first = next(iter(LABELS))
    del site.content[first]
    refused(
        site.paths, repr(first), "HTTP 404", "xaiutils fetch --from FOLDER imagenet-photographs"
    )
    assert site.cached() == []


def test_without_a_network_it_says_what_to_do(site):
    site.stop()
    refused(site.paths, "ConnectionError", "with a network", "xaiutils fetch --from FOLDER")
    assert site.cached() == []


def test_a_damaged_file_is_fetched_again_or_refused(site):
    first = site.paths()[0]
    first.write_bytes(b"damaged")
    assert site.paths()[0].read_bytes() == CONTENT[first.name]
    first.write_bytes(b"damaged")
    site.stop()
    refused(site.paths, "the cached file was damaged and is removed", sha256(b"damaged"))
    assert site.cached() == sorted(CONTENT)[1:]


LAYOUTS = {
    "as published": lambda name: name,
    "folders of class indices": lambda name: f"{LABELS[name]}/{name}",
    "a cache folder": lambda name: f"imagenet-photographs/{name}",
}


def copies(folder, layout, content=CONTENT):
    for name, body in content.items():
        file = folder / LAYOUTS[layout](name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_are_taken_in_any_layout(site, tmp_path, layout):
    folder = copies(tmp_path / "copies", layout)
    site.take(folder)
    assert site.cached() == sorted(CONTENT)
    assert [file.read_bytes() for file in site.paths()] == list(CONTENT.values())
    assert site.requests == []
    assert len([f for f in folder.rglob("*") if f.is_file()]) == 3


def test_the_copy_with_the_right_hash_is_taken(site, tmp_path):
    copies(tmp_path / "copies", "as published", dict.fromkeys(CONTENT, b"other"))
    copies(tmp_path / "copies", "folders of class indices")
    site.take(tmp_path / "copies")
    assert [file.read_bytes() for file in site.paths()] == list(CONTENT.values())


def test_copies_that_are_missing_or_differ_are_named(site, tmp_path):
    first, _, third = CONTENT
    folder = copies(tmp_path / "copies", "as published", {first: b"other", third: CONTENT[third]})
    hashes = f"has sha256 {sha256(b'other')}, expected {sha256(CONTENT[first])}"
    refused(
        lambda: site.take(folder),
        repr(first),
        hashes,
        "2 of 3 files of imagenet-photographs",
        "fetch",
    )
    assert site.cached() == [third]
    (folder / first).unlink()
    refused(lambda: site.take(folder), repr(first), "no file of that name is there", "2 of 2")
    nowhere = tmp_path / "nowhere"
    refused(lambda: site.take(nowhere), f"there is no folder {nowhere}")
    refused(lambda: site.take(folder, ["n01_A.JPEG"]), "unknown asset 'n01_A.JPEG'; did you mean")


@pytest.mark.parametrize("name", ["one.bin", "toys-1.0-py3-none-any.whl"])
def test_members_of_archives_are_taken_alone_or_out_of_the_archive(site, tmp_path, name):
    folder = tmp_path / "copies" / "downloads"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"other")
    refused(
        lambda: site.take(folder, ["one.bin"]), f"{folder / name} has sha256 {sha256(b'other')}"
    )
    (folder / name).write_bytes(b"one" if name == "one.bin" else site.whole)
    site.take(folder.parent, ["one.bin"])
    assert site.cached() == ["one.bin"]
    assert site.paths(["one.bin"])[0].read_bytes() == b"one"


def test_the_command_takes_copies(site, tmp_path, monkeypatch, capsys):
    known = registry.archives(site.registry)
    monkeypatch.setattr(assets, "archives", lambda *_: known)
    monkeypatch.setenv("XAIUTILS_CACHE", str(site.cache))
    folder = copies(tmp_path / "copies", "as published")
    assert assets.main(["--from", str(folder), "imagenet-photographs"]) == 0
    assert capsys.readouterr().out == "imagenet-photographs: 3 files, 0.1 MB, none\n"
    assert assets.main(["--from", str(folder)]) == 1  # of a default run: the archive
    assert "asset 'one.bin': no file of that name is there" in capsys.readouterr().err
    assert site.requests == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0 n01_a", "1000 n01_a", "line 1: '1000 n01_a"),
        ("0 n01_a", "n01_a", "line 1: 'n01_a"),
        ("2 n02_b's.JPEG", "2 n01_a.JPEG", "line 2: '2 n01_a"),
        ("999 n03_c.JPEG ", "999 n03_c.JPEG 0", "line 3: '999 n03"),
        ("0 n01_a", "0 ../n01_a", "would leave its folder"),
    ],
)
def test_a_damaged_table_is_named_in_one_line(site, old, new, message):
    table = site.folder / "table.txt"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))
    refused(lambda: registry.archives.__wrapped__(site.registry), message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"table.txt"', '"none.txt"', "none.txt cannot be read"),
        ('"table.txt"', '"../table.txt"', "table = '../table.txt' must be a plain file name"),
        ('table = "table.txt"', "", "table = None must be of type str"),
        ('table = "table.txt"', 'table = "table.txt"\nsha256 = "0"', "unknown key 'sha256'"),
    ],
)
def test_a_damaged_collection_is_named_in_one_line(site, old, new, message):
    site.registry.write_text(site.registry.read_text().replace(old, new, 1))
    refused(lambda: registry.archives.__wrapped__(site.registry), message)


def test_the_table_of_photographs_lists_every_second_class():
    collection = assets.archives()["imagenet-photographs"]
    assert list(collection.labels.values()) == list(range(0, 1000, 2))
    identifiers = [name.partition("_")[0] for name in collection.files]
    assert identifiers == sorted(identifiers)  # as the classes are
    classes = datasets.class_names()
    for name, label in collection.labels.items():
        shown = name.removesuffix(".JPEG").partition("_")[2].replace("_", " ")
        assert shown == classes[label].removesuffix(" bird")  # "crane bird", which is no machine
    assert len({member.sha256 for member in collection.files.values()}) == 500


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_photographs_come_with_their_labels(make_site, monkeypatch):
    levels = dict(zip(LABELS, (10, 20, 30), strict=True))
    site = make_site({name: picture((level, 0, 0)) for name, level in levels.items()})
    known = registry.archives(site.registry)
    monkeypatch.setattr(assets, "archives", lambda *_: known)
    monkeypatch.setenv("XAIUTILS_CACHE", str(site.cache))
    two = datasets.imagenet_photographs(16, n=2, seed=1)
    assert len(site.requests) == 2  # what a subset needs
    every = datasets.imagenet_photographs(16)
    assert every.images.shape == (3, 3, 16, 16) and every.images.dtype == torch.float32
    np.testing.assert_allclose(every.images[:, 0, 8, 8], np.array([10, 20, 30]) / 255, atol=1e-6)
    assert every.labels.dtype == torch.int64 and every.labels.tolist() == [0, 2, 999]
    assert every.names == ["n01_a", "n02_b's", "n03_c"]
    assert every.class_names == datasets.class_names()
    chosen = [every.names.index(name) for name in two.names]
    assert chosen == sorted(chosen)
    assert torch.equal(two.images, every.images[chosen])
    assert torch.equal(two.labels, every.labels[chosen])
    assert datasets.imagenet_photographs(16, n=2, seed=1).names == two.names


@pytest.mark.parametrize(
    ("size", "n", "message"),
    [
        (0, None, "size is 0, must be at least 1"),
        (8, 0, r"n is 0, must be within 1\.\.500"),
        (8, 501, "n is 501"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_fetched(monkeypatch, size, n, message):
    monkeypatch.setattr(assets, "paths", lambda names: pytest.fail("fetched"))
    with pytest.raises(ValueError, match=message):
        datasets.imagenet_photographs(size, n=n)


def test_a_cache_folder_copied_whole_needs_no_network(site, tmp_path):
    site.paths()
    shutil.copytree(site.cache, tmp_path / "copied")
    site.stop()
    files = assets.paths(list(LABELS), registry=site.registry, cache=tmp_path / "copied")
    assert [file.read_bytes() for file in files] == list(CONTENT.values())
