"""Drawings are tested in the style that the notebooks set; what one test loads, no other finds."""

import pytest

from xaiutils.companion import figures
from xaiutils.studies.ganmex import cases


@pytest.fixture(autouse=True, scope="session")
def style():
    figures.use_style()


@pytest.fixture(autouse=True, scope="module")
def nothing_loaded():
    cases._generator.cache_clear()
    cases._classifier.cache_clear()
    cases._judge.cache_clear()
