"""Pickles of numpy arrays, read without letting them do anything else."""

import pickle
from typing import BinaryIO, ClassVar

import numpy as np

from xaiutils.data.registry import AssetError


def read_arrays(stream: BinaryIO, name: str, encoding: str = "ASCII") -> object:
    """Read a pickle of numpy arrays in lists, tuples and dictionaries.

    Parameters
    ----------
    stream : binary file
    name : str
        The asset, for messages.
    encoding : str
        As of ``pickle.load``; "latin1" where Python 2 wrote the arrays.

    Returns
    -------
    object
        What was pickled.

    Raises
    ------
    xaiutils.data.assets.AssetError
        The pickle asks for anything but numpy's arrays, or is damaged.
    """
    try:
        return _ArrayUnpickler(stream, name, encoding).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError) as error:
        raise AssetError(
            f"asset {name!r}: its pickle is damaged ({type(error).__name__}: {error}); remove the "
            "file and fetch again"
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that can build numpy arrays and nothing else."""

    _allowed: ClassVar = {
        # Taken from an array, since the module that holds the function is private to numpy.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def __init__(self, stream: BinaryIO, name: str, encoding: str):
        super().__init__(stream, encoding=encoding)
        self._name = name

    def find_class(self, module: str, name: str) -> object:
        known = (module.replace("numpy._core", "numpy.core"), name)
        if known not in self._allowed:
            raise AssetError(
                f"asset {self._name!r}: its pickle asks for {module}.{name}, which is refused "
                "(only numpy arrays are read); remove the file and fetch again"
            )
        return self._allowed[known]
