"""Where fetched files lie: one folder, whichever way it is named and wherever a process moves."""

import functools
from pathlib import Path

import pytest

from xaiutils.data import assets


def test_environment_variable_moves_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path / "elsewhere"))
    assert assets.cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("XAIUTILS_CACHE", "")
    assert assets.cache_folder() == Path(assets.__file__).parents[2] / "data" / "cache"


def test_a_relative_cache_is_where_the_process_first_asked_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "_resolved", functools.lru_cache(assets._resolved.__wrapped__))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XAIUTILS_CACHE", "shared/cache")
    assert assets.cache_folder() == tmp_path / "shared" / "cache"
    monkeypatch.chdir(tmp_path / "other")
    assert assets.cache_folder() == tmp_path / "shared" / "cache"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "_resolved", assets._resolved.__wrapped__)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XAIUTILS_CACHE", "~/cache")
    assert assets.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("XAIUTILS_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(assets.AssetError, match=r"'~nobody.*give the full path"):
        assets.cache_folder()
