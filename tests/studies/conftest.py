"""Drawings are tested in the style that the notebooks set."""

import pytest

from xaiutils.companion import figures


@pytest.fixture(autouse=True, scope="session")
def style():
    figures.use_style()
