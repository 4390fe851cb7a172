"""The command `xaiutils`: help, dispatch, close matches, exit codes, and where pictures go."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from xaiutils.companion import cli
from xaiutils.companion.provenance import ROOT

NETS = "import torch\nnet = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())\n"


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """A photograph in the current folder, and a small model `reader_net:net` beside it."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    (tmp_path / "reader_net.py").write_text(NETS)
    yield tmp_path / "photo.png"
    sys.modules.pop("reader_net", None)


def explain(*more, file="photo.png"):
    small = ["--model", "reader_net:net", "--size", "8", "--cells", "2x2", "--masks", "20"]
    return cli.main(["explain", file, *small, *more])


def test_help_is_there_at_once_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom xaiutils.companion import cli\n"
        "for arguments in (['--help'], ['--version'], ['nonsense']): cli.main(arguments)\n"
        "try: cli.main(['explain', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules)\n"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 5  # 0.1 s on an idle machine
    assert "usage: xaiutils COMMAND" in done.stdout
    assert re.search(r"^xaiutils \d+\.\d+\.\d+$", done.stdout, re.M)


def test_help_names_every_command_and_shows_an_example(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (does, _) in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(does)}$", shown, re.M)
    assert "xaiutils explain photo.jpg" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert cli.main([]) == 2
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("name", ["explain", "fetch", "run"])
def test_each_command_explains_itself_with_an_example(capsys, name):
    try:
        assert cli.main([name, "--help"]) == 0
    except SystemExit as end:
        assert not end.code
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: xaiutils {name}")
    assert re.search(rf"^.*example.*xaiutils {name} \S+", shown, re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["explian"],
            "error: no command 'explian'; did you mean explain? allowed: explain, fetch,",
        ),
        (["xyz"], "error: no command 'xyz'; allowed: explain,"),
        (["x" * 300], "error: no command 'xxx"),
        (["photo.png"], "error: no command 'photo.png'; did you mean xaiutils explain photo.png?"),
    ],
)
def test_an_unknown_command_is_one_line_with_close_matches(photo, capsys, arguments, message):
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(message) and shown.err.count("\n") == 1 and not shown.out


def test_python_m_and_the_console_script_are_the_same_door():
    done = subprocess.run(
        [sys.executable, "-m", "xaiutils", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"xaiutils {cli.version()}\n")
    project = (ROOT / "pyproject.toml").read_text()
    assert '[project.scripts]\nxaiutils = "xaiutils.companion.cli:main"\n' in project


def test_arguments_go_on_to_the_command_and_its_code_comes_back(monkeypatch):
    got = []

    def command(arguments):
        got.extend(arguments)
        return 7

    monkeypatch.setitem(cli.COMMANDS, "fetch", ("", command))
    assert cli.main(["fetch", "mnist", "--help"]) == 7
    assert got == ["mnist", "--help"]


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_a_signal_is_one_line_and_its_exit_code(sent, monkeypatch, capsys):
    def stopped(arguments):
        signal.raise_signal(signal.Signals[sent])
        raise AssertionError("went on")

    monkeypatch.setitem(cli.COMMANDS, "run", ("", stopped))
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)  # also under nohup
    assert cli.main(["run"]) == 128 + signal.Signals[sent]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stopped by {sent}")


def test_fetch_is_that_of_the_assets(capsys):
    assert cli.main(["fetch", "imagenet_00_243.jpg"]) == 0
    assert capsys.readouterr().out.startswith("foolbox: 1 file, ")
    assert cli.main(["fetch", "imagenet_00_244.jpg"]) == 1
    assert "did you mean imagenet_00_243.jpg" in capsys.readouterr().err


def test_a_file_is_explained_in_words_and_in_a_picture(photo, capsys):
    assert explain() == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "photo.png: 8 x 8 pixels; explained: 8 x 8\nreader_net:net says: class "
    )
    assert shown.endswith("\nwrote photo_explained.png\n")
    with Image.open("photo_explained.png") as image:
        assert image.info["Software"] == "xaiutils explain"
        assert image.info["Description"] + "\nwrote photo_explained.png\n" == shown
        assert np.asarray(image.convert("RGB")).std() > 10


def test_only_pictures_of_its_own_are_overwritten(photo, capsys):
    mine = photo.with_name("photo_explained.png")
    Image.new("RGB", (4, 4)).save(mine)
    before = mine.read_bytes()
    assert explain() == 2
    assert capsys.readouterr().err == (
        "error: --out photo_explained.png: exists and was not made here; --force overwrites it\n"
    )
    mine.write_bytes(b"notes, not a picture")
    assert explain() == 2
    mine.write_bytes(before)
    assert explain("--force") == 0
    assert mine.read_bytes() != before
    mine.touch()
    first = mine.read_bytes()
    assert explain() == 0  # now it is its own
    assert mine.read_bytes() == first  # and the same inputs give the same bytes


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("photo.png", "is the file to explain itself"),
        ("found.jpg", "the name must end in .png"),
        ("nowhere/found.png", "there is no folder nowhere that one may enter"),
        ("folder.png", "is a folder"),
    ],
)
def test_where_no_picture_can_go_nothing_is_asked(photo, capsys, out, message):
    (photo.parent / "folder.png").mkdir()
    before = photo.read_bytes()
    assert explain("--out", out, "--force") == 2
    assert capsys.readouterr().err == f"error: --out {out}: {message}\n"
    assert photo.read_bytes() == before


def test_a_picture_that_cannot_be_written_does_not_take_the_words_away(photo, capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xaiutils.companion.provenance.write", full)
    assert explain() == 1
    shown = capsys.readouterr()
    assert "rank  cell  coefficient" in shown.out
    assert shown.err.endswith(
        "error: photo_explained.png cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("nowhere.jpg", "there is no file nowhere.jpg"),
        (".", ". is a folder"),
        ("reader_net.py", "reader_net.py is neither an image nor a sound in a known format"),
    ],
)
def test_what_is_no_media_file_is_one_line_and_2(photo, capsys, file, message):
    assert explain("--out", "a.png", file=file) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}") and shown.count("\n") == 1
    assert not (photo.parent / "a.png").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "99"], "target 99 is not allowed: the model has outputs 0..11"),
        (["--top", "4"], "top 4 is not allowed: of 4 cells 1..3 can be the top ones"),
        (["--masks", "5"], "masks 5 are too few: 4 cells need at least 6"),
        (["--cells", "9x2"], "cells '9x2' is not allowed here: give AxB, at most 8x8"),
        (["--cells", "many"], "cells 'many' is not allowed here"),
        (["--cells", "1x1"], "photo.png has one cell only"),
        (["--at", "1"], "at is for sounds, and photo.png is an image"),
        (["--model", "reader_net:nat"], "model 'reader_net:nat': reader_net has no 'nat'"),
    ],
)
def test_options_that_do_not_fit_are_one_line_and_2(photo, capsys, more, message):
    assert explain(*more) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}") and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--masks", "1000000000000", "is no whole number from 1 to 100000"),
        ("--size", "100000", "is no whole number from 1 to 2048"),
        ("--target", "9" * 30, "is no whole number from 0 on"),
        ("--model", "", "is empty; leave the option out for the default"),
        ("--cells", " ", "is empty; leave the option out for the default"),
    ],
)
def test_what_no_machine_holds_and_what_is_empty_is_refused(photo, capsys, option, value, message):
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", "photo.png", option, value])
    assert end.value.code == 2
    assert f"argument {option}: " in (shown := capsys.readouterr().err) and message in shown


@pytest.mark.parametrize("name", ["в" * 125, os.fsdecode(b"fot\xe9")], ids=["long", "no UTF-8"])
def test_any_name_of_a_file_is_explained(photo, capsys, name):
    photo.rename(photo.with_name(f"{name}.png"))
    assert explain(file=f"{name}.png") == 0
    made = photo.with_name(f"{name[:50]}_explained.png")
    assert made.exists() and "rank  cell  coefficient" in capsys.readouterr().out
    made.unlink()
    asked = ["--cells", "2x2", "--size", "8", "--model", "reader_net:net"]
    done = subprocess.run(
        [sys.executable, "-m", "xaiutils", "explain", f"{name}.png", *asked],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0 and made.exists(), done.stderr


@pytest.mark.parametrize("value", ["-1", "x", "1.5"])
def test_numbers_must_be_whole(photo, capsys, value):
    with pytest.raises(SystemExit) as end:
        explain("--seed", value)
    assert end.value.code == 2
    assert f"argument --seed: {value!r} is no whole number from 0 on" in capsys.readouterr().err


def test_an_asset_that_cannot_be_fetched_is_one_line_and_1(photo, capsys, monkeypatch):
    from xaiutils.data.assets import AssetError

    def fail(name):
        raise AssetError("asset 'x': cannot fetch x")

    monkeypatch.setattr("xaiutils.classifiers.imagenet.load", fail)
    assert cli.main(["explain", "photo.png"]) == 1
    assert capsys.readouterr().err == "error: asset 'x': cannot fetch x\n"
