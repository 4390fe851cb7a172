"""External data files: fetched from where they are published, verified, kept in a cache folder.

Which files there are says `xaiutils.data.registry`. An archive is checked against its pinned sha256
before it is opened, its members before they are used. Archives are only read as containers: nothing
in them is imported or executed. Files that lie by themselves are checked one by one.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from xaiutils.data import downloads
from xaiutils.data.registry import (
    CACHE_VARIABLE,
    REGISTRY,
    Archive,
    AssetError,
    Collection,
    archives,
)
from xaiutils.data.registry import DATA as DATA
from xaiutils.data.registry import hashes as hashes
from xaiutils.data.registry import names as names

_verified: dict[Path, tuple[int, int, str]] = {}  # file -> mtime (ns), size, sha256 when hashed
_used: dict[str, str] = {}


def used() -> dict[str, str]:
    """Name -> sha256 of the assets handed out in this process, sorted by name.

    Of a collection, its own name and the sha256 of its table, which lists those of its files.
    """
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
    damaged file is removed and fetched again. The first fetch brings all assets of an archive.

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
    return paths([name], registry=registry, cache=cache)[0]


def paths(
    names: Sequence[str], *, registry: Path = REGISTRY, cache: Path | None = None
) -> list[Path]:
    """Local files of several assets, as of `path`; what is missing is fetched together.

    Where fetching a collection stops, for want of a network or by Ctrl-C, files that are complete
    are kept and the next call goes on from there.

    Parameters
    ----------
    names : sequence of str
        Names of the registry.
    registry, cache
        As of `path`.

    Returns
    -------
    list of pathlib.Path
        Absolute paths of the verified files, in the order of `names`.

    Raises
    ------
    AssetError
        As of `path`.
    """
    known = archives(registry)
    groups = _grouped(names, known)
    found = {}
    for key, wanted in groups.items():
        folder = _folder(key, cache)
        if _missing(known[key], wanted, folder):
            with writing(folder, wanted[0]):
                # Another process may have fetched them meanwhile.
                if missing := _missing(known[key], wanted, folder):
                    _fetch(known[key], missing, folder)
        found |= {name: folder / name for name in wanted}
        if isinstance(known[key], Collection):
            _used[key] = known[key].sha256
        else:
            _used.update({name: known[key].files[name].sha256 for name in wanted})
    return [found[name] for name in names]


def take(
    source: Path,
    names: Sequence[str],
    *,
    registry: Path = REGISTRY,
    cache: Path | None = None,
) -> None:
    """Fill the cache from a folder of this machine instead of the network.

    Files are found by their names, at any depth: single assets, such as those of a cache folder or
    of a collection's own layout, or a whole archive under the name it is published with.

    Parameters
    ----------
    source : pathlib.Path
        Folder to look in; it is left as it is.
    names : sequence of str
        Assets to take. Those that are in the cache already are not looked for.
    registry, cache
        As of `path`.

    Raises
    ------
    AssetError
        No such folder or asset, a file is not found or has a wrong hash (the others are taken
        nonetheless), unwritable or full disk.
    """
    known = archives(registry)
    groups = _grouped(names, known)
    wanted = set(names) | {known[k].filename for k in groups if isinstance(known[k], Archive)}
    if not source.is_dir():
        raise AssetError(f"there is no folder {source} to take assets from")
    copies: dict[str, list[Path]] = {}
    for file in source.rglob("*"):
        if file.name in wanted and file.is_file():
            copies.setdefault(file.name, []).append(file)
    for key, asked in groups.items():
        folder = _folder(key, cache)
        if missing := _missing(known[key], asked, folder):
            with writing(folder, missing[0]):
                _take(known[key], missing, copies, folder, source)


def _take(
    group: Archive | Collection,
    names: list[str],
    copies: dict[str, list[Path]],
    folder: Path,
    source: Path,
) -> None:
    for name in names:
        expected = group.files[name].sha256
        if right := _with_hash(copies.get(name, []), expected):
            with replacing(folder / name) as temporary:
                shutil.copyfile(right, temporary)
                _check(temporary, expected, f"the copy of {right}")
    if not (lacking := _missing(group, names, folder)):
        return
    if isinstance(group, Archive) and (
        whole := _with_hash(copies.get(group.filename, []), group.sha256)
    ):
        _extract(group, whole, folder)
        return
    first = lacking[0]
    other = copies.get(first) or copies.get(getattr(group, "filename", ""))
    reason = "no file of that name is there"
    if other:
        pinned = group.files[first].sha256 if other[0].name == first else group.sha256
        reason = f"{other[0]} has sha256 {_sha256(other[0])}, expected {pinned}"
    raise AssetError(
        f"asset {first!r}: {reason}; {len(lacking)} of {len(names)} files of {group.key} cannot be "
        f"taken from {source}, take them from another folder or fetch them: "
        f"xaiutils fetch {group.key}"
    )


def _with_hash(files: list[Path], expected: str) -> Path | None:
    return next((file for file in files if _sha256(file) == expected), None)


def _grouped(names: Sequence[str], known: dict[str, Archive | Collection]) -> dict[str, list[str]]:
    """Keys of the groups that hold these assets, in the order asked, and the names of each."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_group_of(name, known).key, []).append(name)
    return groups


def _folder(key: str, cache: Path | None) -> Path:
    return (cache_folder() if cache is None else cache.absolute()) / key


def _missing(group: Archive | Collection, names: Sequence[str], folder: Path) -> list[str]:
    return [n for n in names if not _intact(folder / n, group.files[n].sha256)]


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


def _group_of(name: str, known: dict[str, Archive | Collection]) -> Archive | Collection:
    for group in known.values():
        if name in group.files:
            return group
    every = [n for group in known.values() for n in group.files]
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


def _fetch(group: Archive | Collection, names: list[str], folder: Path) -> None:
    damage = {name: _remove(folder / name, group.files[name].sha256) for name in names}
    if isinstance(group, Archive):
        with _about(f"asset {names[0]!r}: {damage[names[0]]}"):
            _fetch_archive(group, folder)
        return
    with downloads.connected() as session:
        for done, name in enumerate(downloads.progress(group, names)):
            kept = f" ({done} of {len(names)} files were fetched and are kept)" if done else ""
            with _about(f"asset {name!r}: {damage[name]}", kept):
                with replacing(folder / name) as temporary:
                    downloads.fetch_file(session, group, name, temporary)
                    _check(temporary, group.files[name].sha256, f"the file from {group.address}")
                _intact(folder / name, group.files[name].sha256)


def _remove(file: Path, expected: str) -> str:
    """Remove a file that is not what it should be, and say so; "" where there is none."""
    if not file.exists():
        return ""
    found = _sha256(file)
    file.unlink()
    return (
        f"the cached file was damaged and is removed (expected sha256 {expected}, found {found}); "
    )


@contextmanager
def _about(what: str, more: str = "") -> Iterator[None]:
    """Put before and after the message of an error what it is about."""
    try:
        yield
    except AssetError as error:
        raise AssetError(f"{what}{error}{more}") from error.__cause__


def _fetch_archive(archive: Archive, folder: Path) -> None:
    download = folder / f".{archive.filename}.part"
    try:
        downloads.fetch_archive(archive, download)
        got = f"{download.stat().st_size} of {archive.bytes} bytes"
        _check(download, archive.sha256, f"archive {archive.filename} ({got})")
        _extract(archive, download, folder)
    finally:
        download.unlink(missing_ok=True)


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
    """Fetch assets and print one line per group."""
    parser = argparse.ArgumentParser(
        prog="xaiutils fetch",
        description="Fetch weights, images and sounds from where they are published and check them "
        f"by their hashes. They go to data/cache, or to the folder named by {CACHE_VARIABLE}; what "
        "is there already is checked only.",
        epilog="examples: xaiutils fetch foolbox vocadito_14.wav; "
        "xaiutils fetch --from ~/imagenet-sample-images imagenet-photographs",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="asset, archive or collection; default: all of a default run",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER",
        help="take the files from this folder, at any depth, instead of the network",
    )
    given = parser.parse_args(arguments)
    try:
        known = archives()
        wanted = given.names or [key for key, group in known.items() if group.default]
        names = [n for w in wanted for n in (known[w].files if w in known else [w])]
        names = list(dict.fromkeys(names))
        groups = _grouped(names, known)
        if given.source is not None:
            take(Path(given.source).expanduser(), names)
        files = paths(names)
    except AssetError as error:
        print(error, file=sys.stderr)
        return 1
    places = dict(zip(names, files, strict=True))
    for key, found in groups.items():
        size = sum(places[name].stat().st_size for name in found) / 1e6
        print(
            f"{key}: {len(found)} file{'s' * (len(found) > 1)}, {size:.1f} MB, {known[key].licence}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
