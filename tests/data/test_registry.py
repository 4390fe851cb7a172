"""The registry of assets: a damaged or misspelt table is named, whatever is wrong with it."""

import re

import pytest

from xaiutils.data import assets, registry

PIN = "0" * 64
GOOD = f"""\
[toys]
title = "toys"
package = "toys"
version = "1.0"
filename = "toys-1.0-py3-none-any.whl"
bytes = 10
sha256 = "{PIN}"
default = true
licence = "MIT"
source = "a test"
citation = "none"

[toys.files]
"one.bin" = {{ member = "data/one.bin", sha256 = "{PIN}" }}
"""


def test_a_good_table_is_read(tmp_path):
    file = tmp_path / "assets.toml"
    file.write_text(GOOD)
    (archive,) = registry.archives(file).values()
    assert (archive.key, archive.bytes, archive.default) == ("toys", 10, True)
    assert archive.files == {"one.bin": ("data/one.bin", PIN)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bytes = 10", "bytes = ", r"cannot be read \(Invalid value"),
        ('title = "toys"\n', "", "title = None must be of type str"),
        ("bytes = 10", 'bytes = "10"', "bytes = '10' must be of type int"),
        ("bytes = 10", "bytes = true", "bytes = True must be of type int"),
        ("default = true", "default = 1", "default = 1 must be of type bool"),
        ("licence", "license", "unknown key 'license'; licence = None"),
        (GOOD, "toys = 3", r"\[toys\]: title = None"),
        ("[toys.files]", "[toys.file]", "unknown key 'file'; files = None"),
        (f'sha256 = "{PIN}"\ndefault', 'sha256 = "0"\ndefault', "sha256 of toys = '0' must be 64"),
        (f'sha256 = "{PIN}" }}', 'sha256 = "x" }', "sha256 of 'one.bin' = 'x' must be 64"),
        (f', sha256 = "{PIN}" }}', " }", r"'one.bin' must be \{ member"),
        ('{ member = "data/one.bin"', "{ member = 3", "member of 'one.bin' must be text"),
        ("toys]", '"../toys"]', "must be a plain folder name"),
    ],
)
def test_a_damaged_table_is_named_in_one_line(tmp_path, old, new, message):
    file = tmp_path / "assets.toml"
    assert old in GOOD
    text = GOOD.replace(old, new)
    file.write_text(text.replace("[toys.", '["../toys".') if "../toys" in new else text)
    with pytest.raises(assets.AssetError, match=message) as error:
        registry.archives(file)
    assert "assets.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "assets.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(assets.AssetError, match=re.escape(str(tmp_path)) + ".*cannot be read"):
        registry.archives(tmp_path / "assets.toml")
