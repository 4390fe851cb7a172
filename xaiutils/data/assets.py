"""External data files: fetched from a public package index, verified, kept in a cache folder.

Which files there are says `xaiutils.data.registry`. An archive is checked against its pinned sha256
before it is opened, its members before they are used. Archives are only read as containers: nothing
in them is imported or executed.
"""

import argparse
import difflib
import errno
import hashlib
import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from xaiutils.data.registry import DATA as DATA
from xaiutils.data.registry import REGISTRY, Archive, AssetError, archives
from xaiutils.data.registry import hashes as hashes
from xaiutils.data.registry import names as names

CACHE_VARIABLE = "XAIUTILS_CACHE"

_verified: dict[Path, tuple[int, int, str]] = {}  # file -> mtime (ns), size, sha256 when hashed
_used: dict[str, str] = {}


def used() -> dict[str, str]:
    """Name -> sha256 of the assets that `path` has handed out in this process, sorted by name."""
    return dict(sorted(_used.items()))


def cache_folder() -> Path:
    """Folder of the fetched files: ``$XAIUTILS_CACHE`` where set, else ``data/cache``.

    A relative folder is meant from where the process stood when it first asked, and stays that one
    wherever the process moves; "~" is the home folder. A child that starts elsewhere is to be given
    this path.

    Raises
    ------
    AssetError
        The variable names the home folder of somebody who has none here.
    """
    given = os.environ.get(CACHE_VARIABLE)
    return _resolved(given) if given else DATA / "cache"


@lru_cache
def _resolved(folder: str) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no such home; the working directory is gone
        raise AssetError(
            f"{CACHE_VARIABLE} = {folder!r}: {error}; give the full path of a folder"
        ) from None


def path(name: str, *, registry: Path = REGISTRY, cache: Path | None = None) -> Path:
    """Local file of an asset, fetched on first use and checked against its pinned sha256.

    A file is hashed once per process, and again when its size or modification time changes. A
    damaged file is removed and fetched again. The first fetch brings all assets of the archive.

    Parameters
    ----------
    name : str
        A name of the registry, such as ``"imagenet_00_243.jpg"``.
    registry : pathlib.Path
        Registry to look in.
    cache : pathlib.Path, optional
        Folder of the fetched files; default `cache_folder`.

    Returns
    -------
    pathlib.Path
        Absolute path of the verified file.

    Raises
    ------
    AssetError
        Unknown name, no network, wrong hash, unreadable archive, missing or refused member,
        unwritable or full disk.
    """
    archive = _archive_of(name, archives(registry))
    folder = (cache_folder() if cache is None else cache.absolute()) / archive.key
    target, expected = folder / name, archive.files[name].sha256
    if not _intact(target, expected):
        with writing(folder, name):
            if not _intact(target, expected):  # else another process fetched it meanwhile
                _fetch(archive, name, folder)
    _used[name] = expected
    return target


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a cache folder, created if need be, to write asset `name` there.

    Raises
    ------
    AssetError
        The folder cannot be written or its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise AssetError(
            f"asset {name!r}: cannot write {folder}: {'the disk is full' if full else error}; "
            f"free space there or name another folder in {CACHE_VARIABLE}"
        ) from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that takes its place on success, else is removed.

    The temporary name is fixed, so that a killed process leaves nothing that the next one does not
    overwrite: use it under `writing`.
    """
    temporary = target.with_name(f".{target.name}.part")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _archive_of(name: str, known: dict[str, Archive]) -> Archive:
    for archive in known.values():
        if name in archive.files:
            return archive
    every = [n for archive in known.values() for n in archive.files]
    close = difflib.get_close_matches(name, every)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise AssetError(f"unknown asset {name!r}; {hint}xaiutils.data.assets.names() lists all")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _intact(file: Path, expected: str) -> bool:
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    signature = (status.st_mtime_ns, status.st_size, expected)
    if _verified.get(file) != signature:
        if _sha256(file) != expected:
            return False
        _verified[file] = signature
    return True


def _fetch(archive: Archive, name: str, folder: Path) -> None:
    target, expected = folder / name, archive.files[name].sha256
    damage = ""
    if target.exists():
        damage = (
            f"the cached file was damaged and is removed (expected sha256 {expected}, "
            f"found {_sha256(target)}); "
        )
        target.unlink()
    download = folder / f".{archive.filename}.part"
    try:
        _download(archive, download)
        got = f"{download.stat().st_size} of {archive.bytes} bytes"
        _check(download, archive.sha256, f"archive {archive.filename} ({got})")
        _extract(archive, download, folder)
    except AssetError as error:
        raise AssetError(f"asset {name!r}: {damage}{error}") from error.__cause__
    finally:
        download.unlink(missing_ok=True)


def _download(archive: Archive, target: Path) -> None:
    # Half a second of imports, spared where nothing is to be fetched.
    import requests
    from pypi_simple import NoSuchProjectError, PyPISimple, tqdm_progress_factory
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    what = f"{archive.filename} of {archive.package} {archive.version}"
    # Bars go to terminals only: in a notebook they would end up in its saved output.
    bar = tqdm_progress_factory(desc=archive.key, unit="B", unit_scale=True, disable=None)
    try:
        with PyPISimple() as index:
            patient = Retry(3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
            index.s.mount("https://", HTTPAdapter(max_retries=patient))
            page = index.get_project_page(archive.package, timeout=30)
            listed = [p for p in page.packages if p.filename == archive.filename]
            if not listed:
                raise AssetError(f"the package index no longer lists {what}; update the registry")
            # The pinned hash, checked by the caller, is stricter than the one the index states.
            index.download_package(listed[0], target, verify=False, progress=bar, timeout=30)
    except NoSuchProjectError:
        raise AssetError(f"the package index does not know {what}; update the registry") from None
    except requests.RequestException as error:
        raise AssetError(
            f"cannot fetch {what} from the package index ({type(error).__name__}); try again with "
            "a network, or copy a filled cache folder here and name it in " + CACHE_VARIABLE
        ) from error


def _check(file: Path, expected: str, what: str) -> None:
    found = _sha256(file)
    if found != expected:
        raise AssetError(
            f"{what} has a wrong hash (expected sha256 {expected}, found {found}) and is removed; "
            "fetch again, and if this repeats, do not use it and update the registry"
        )


def _extract(archive: Archive, file: Path, folder: Path) -> None:
    try:
        with _opened(file, archive.filename) as container:
            for name, (member, sha256) in archive.files.items():
                with replacing(folder / name) as temporary:
                    with _member(container, member) as source, temporary.open("wb") as sink:
                        shutil.copyfileobj(source, sink)
                    _check(temporary, sha256, f"member {member} of {archive.filename}")
                _intact(folder / name, sha256)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise AssetError(
            f"archive {archive.filename} is truncated or damaged ({error}); fetch again"
        ) from error


def _opened(file: Path, filename: str) -> zipfile.ZipFile | tarfile.TarFile:
    if filename.endswith(".whl"):
        return zipfile.ZipFile(file)
    return tarfile.open(file, "r:gz")


def _member(container: zipfile.ZipFile | tarfile.TarFile, member: str) -> BinaryIO:
    """Open a regular file of the archive for reading; links, folders and devices are refused."""
    try:
        if isinstance(container, zipfile.ZipFile):
            entry = container.getinfo(member)
            kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the writer kept no Unix mode
            if kind in (0, stat.S_IFREG) and not entry.is_dir():
                return container.open(entry)
        else:
            entry = container.getmember(member)
            if entry.isreg():
                return container.extractfile(entry)
    except KeyError:
        raise AssetError(f"the archive has no member {member}; update the registry") from None
    raise AssetError(f"member {member} is not a regular file and is refused; update the registry")


def main(arguments: list[str] | None = None) -> int:
    """Fetch assets and print one line per archive."""
    parser = argparse.ArgumentParser(
        prog="xaiutils fetch",
        description="Fetch weights, images and sounds from the package index and check them by "
        f"their hashes. They go to data/cache, or to the folder named by {CACHE_VARIABLE}; what is "
        "there already is checked only.",
        epilog="example: xaiutils fetch foolbox vocadito_14.wav",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="asset or archive; default: all of a default run"
    )
    wanted = parser.parse_args(arguments).names
    try:
        known = archives()
        wanted = wanted or [key for key, archive in known.items() if archive.default]
        files: dict[str, list[Path]] = {}
        for name in (n for w in wanted for n in (known[w].files if w in known else [w])):
            files.setdefault(_archive_of(name, known).key, []).append(path(name))
    except AssetError as error:
        print(error, file=sys.stderr)
        return 1
    for key, found in files.items():
        size = sum(file.stat().st_size for file in found) / 1e6
        print(
            f"{key}: {len(found)} file{'s' * (len(found) > 1)}, {size:.1f} MB, {known[key].licence}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
