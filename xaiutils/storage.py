"""Results kept in files: numpy's archive without pickles, written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import ClassVar, Self

import numpy as np


class Storable:
    """What a dataclass of arrays inherits to be saved, loaded and turned into JSON types.

    A class says in `_AXES`, for each field, which kinds of numbers it may hold (numpy's letters)
    and along which axes. Fields that name the same axis must agree about its length; "d+1" is one
    longer than "d"; "T" may be missing, from all fields alike. A field with "?" among its kinds
    may be None, which is written as an empty array of booleans; texts are read as a tuple.
    """

    _AXES: ClassVar[dict[str, tuple[str, str]]]
    _VERSION: ClassVar[int] = 1  # to be raised when fields change their names or meaning

    def save(self, path: str | os.PathLike) -> None:
        """Write all fields to a file of this very name, in numpy's npz format without pickles.

        The file gets its name once it is complete; folders on the way to it are made.

        Parameters
        ----------
        path : str or path
            A file of this name is replaced.

        Raises
        ------
        ValueError
            If types or shapes of the fields do not fit: the file could not be loaded.
        OSError
            If the file cannot be written.
        """
        if not os.fspath(path):
            raise ValueError("path is empty; allowed: the name of a file")
        path, arrays = Path(path), {name: _array(getattr(self, name)) for name in self._AXES}
        if problem := self._misfit(arrays):
            raise ValueError(f"{type(self).__name__} cannot be saved: {problem}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with part.open("xb") as file:  # to a name, numpy would append its suffix
                np.savez(file, kind=self._kind(), version=self._VERSION, **arrays)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read what `save` wrote: the same values, shapes and types.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        ValueError
            If the file is damaged, or of another kind or version. Pickles are never loaded.
        OSError
            If the file cannot be read.
        """
        with open(path, "rb") as file:
            try:
                arrays = cls._read(file)
            except Exception as error:  # a damaged file can fail in any part of the readers
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(
                    f"{os.fspath(path)!r} is no file that {cls.__name__}.save wrote, or it is "
                    f"damaged: {reason}"
                ) from error
        return cls(**{name: _value(array) for name, array in arrays.items()})

    def to_dict(self) -> dict:
        """All fields as JSON types, arrays as nested lists.

        Returns
        -------
        dict
            Numbers keep all their digits; NaN becomes None, an infinity the text "inf" or "-inf".
        """
        return {name: _plain(getattr(self, name)) for name in self._AXES}

    @classmethod
    def _kind(cls) -> str:
        return f"xaiutils.{cls.__name__}"

    @classmethod
    def _read(cls, file) -> dict[str, np.ndarray]:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with archive:
            if damaged := archive.zip.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
            arrays = dict(archive.items())
        kind, version = (str(arrays.pop(name, "missing")) for name in ("kind", "version"))
        if kind != cls._kind():
            raise ValueError(f"its kind is {kind}, expected {cls._kind()}")
        if version != str(cls._VERSION):
            raise ValueError(f"its version is {version}, this xaiutils reads {cls._VERSION}")
        if problem := cls._misfit(arrays):
            raise ValueError(problem)
        return arrays

    @classmethod
    def _misfit(cls, arrays) -> str | None:
        """What is wrong with the names, types or shapes of the fields, None if nothing."""
        if arrays.keys() != cls._AXES.keys():
            return f"fields {', '.join(arrays) or 'none'}, expected {', '.join(cls._AXES)}"
        length = {}
        for name, (kinds, text) in cls._AXES.items():
            array, axes = arrays[name], text.split()
            if "?" in kinds and _is_none(array):
                continue
            if "T" in axes:
                several = array.ndim == len(axes)
                length.setdefault("T", array.shape[axes.index("T")] if several else None)
                if length["T"] is None:
                    axes.remove("T")
            for axis, size in zip(axes, array.shape, strict=False):
                length.setdefault(axis, length["d"] + 1 if axis == "d+1" else size)
            expected = tuple(length.get(axis) for axis in axes)
            if array.dtype.kind not in kinds or array.shape != expected:
                return (
                    f"{name} is {array.dtype} {array.shape}, expected ({', '.join(axes)}) "
                    f"with {length} and numpy kind {kinds.strip('?')}"
                )
        return None


def _array(value) -> np.ndarray:
    return np.empty(0, bool) if value is None else np.asarray(value)


def _is_none(array) -> bool:
    return array.dtype == bool and array.shape == (0,)


def _value(array):
    if _is_none(array):
        return None
    if array.dtype.kind == "U":
        return tuple(array.tolist())
    return bool(array) if array.dtype == bool and not array.ndim else array[()]


def _plain(value):
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value
