"""Figures: what is written, that equal inputs give equal bytes, and what is refused."""

import json
import sys
import types

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
import torch

from xaiutils.companion import figures, provenance, results

ALT = "Accuracy against the share of masked pixels, falling from 0.9 to 0.1."


@pytest.fixture
def shown(monkeypatch):
    """List of what `savefig` displays."""
    images = []
    monkeypatch.setattr(figures, "display", images.append)
    return images


@pytest.fixture
def folder(tmp_path, monkeypatch, shown):
    """Folder of a run under the runner."""
    run = provenance.Run(
        root=str(tmp_path),
        notebook="tiny",
        profile="default",
        output=str(tmp_path / "out"),
        parameters={"seed": 7, "device": "cpu", "n": 3},
        hashes={"notebook": "aa", "package": "bb", "requirements.lock": "cc"},
    )
    run.save(tmp_path / "run.json")
    monkeypatch.setenv(provenance.VARIABLE, str(tmp_path / "run.json"))
    return tmp_path / "out"


def draw(**kwargs):
    fig, ax = plt.subplots(**kwargs)
    ax.plot([0, 1], [0.9, 0.1])
    ax.set_title("n = 3")
    return fig


def save(name="curve", fig=None, **changes):
    figures.savefig(name, fig or draw(), **{"data": {"y": [0.9, 0.1]}, "alt": ALT, **changes})


def test_three_files_with_the_numbers_and_all_they_depend_on(folder, monkeypatch):
    registry = types.SimpleNamespace(used=lambda: {"b": "22", "a": "11"})
    monkeypatch.setitem(sys.modules, "xaiutils.data.assets", registry)
    save()
    assert sorted(p.name for p in folder.iterdir()) == ["curve.json", "curve.pdf", "curve.png"]
    record = json.loads((folder / "curve.json").read_text())
    versions = record.pop("versions")
    assert (
        record.pop("sha256")
        == json.loads(results.sealed(record | {"versions": versions}))["sha256"]
    )
    assert record.pop("png_sha256") == results.picture_hash((folder / "curve.png").read_bytes())
    assert versions["numpy"] == np.__version__
    assert versions["python"] == "{}.{}.{}".format(*sys.version_info)
    assert record == {
        "figure": "curve",
        "alt": ALT,
        "notebook": "tiny",
        "profile": "default",
        "parameters": {"seed": 7, "device": "cpu", "n": 3},
        "seed": 7,
        "device": "cpu",
        "hashes": {
            "notebook": "aa",
            "package": "bb",
            "requirements.lock": "cc",
            "assets": {"a": "11", "b": "22"},
        },
        "data": {"y": [0.9, 0.1]},
    }


def test_a_run_on_tiny_inputs_draws_no_pdf(folder, tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    save()
    picture = (folder / "curve.png").read_bytes()
    monkeypatch.setattr(provenance, "write", lambda path, content: written.update({path: content}))
    written = {}
    text = path.read_text()
    path.write_text(text.replace('"default"', '"smoke-custom"'))
    save()
    assert [*written] == [f"{folder}/curve.{kind}" for kind in ("png", "json")]
    assert written[f"{folder}/curve.png"] == picture


def test_equal_inputs_give_equal_bytes_without_times_or_versions(folder, monkeypatch):
    figures.use_style()
    save()
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    # The reader's own settings must not matter either, nor another day.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    plt.style.use("dark_background")
    figures.use_style()
    save()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first
    for mark in (b"CreationDate", b"Producer", b"Creator", b"/Type3"):
        assert mark not in first["curve.pdf"]
    for mark in (b"tEXt", b"iTXt", b"tIME", b"Matplotlib"):
        assert mark not in first["curve.png"]


def test_figure_is_shown_once_with_its_alt_text_and_closed(folder, shown):
    fig = draw()
    save(fig=fig)
    assert [(image.data, image.alt) for image in shown] == [
        ((folder / "curve.png").read_bytes(), ALT)
    ]
    assert not plt.fignum_exists(fig.number)


def test_without_a_runner_files_go_to_build(tmp_path, monkeypatch, shown):
    (tmp_path / "requirements.lock").write_text("numpy==2.4.6\n")
    monkeypatch.delenv(provenance.VARIABLE, raising=False)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    save()
    record = json.loads((tmp_path / "build/interactive/figures/curve.json").read_text())
    assert (record["notebook"], record["profile"]) == (None, "interactive")
    assert not (tmp_path / "build/interactive/figures/curve.pdf").exists()
    assert len(record["hashes"]["package"]) == 64
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Curve"}, "a-z"),
        ({"name": "a/b"}, "a-z"),
        ({"name": "curve.png"}, "a-z"),
        ({"name": ""}, "a-z"),
        ({"name": "claims"}, "taken"),
        ({"alt": "A curve."}, "8 characters"),
        ({"alt": " " * 80}, "0 characters"),
        ({"data": {}}, "data of"),
        ({"data": None}, "data of"),
        ({"data": [1, 2]}, "data of"),
    ],
)
def test_what_breaks_a_rule_is_refused_and_writes_nothing(folder, shown, changes, message):
    with pytest.raises(ValueError, match=message):
        save(**changes)
    assert not folder.exists()
    assert shown == []


@pytest.mark.parametrize("missing", ["alt", "data"])
def test_alt_and_data_must_be_given(missing):
    arguments = {"data": {"y": [1]}, "alt": ALT}
    del arguments[missing]
    with pytest.raises(TypeError, match=missing):
        figures.savefig("curve", draw(), **arguments)


def test_too_wide_figures_and_too_small_text_are_refused(folder):
    with pytest.raises(ValueError, match="7 inches wide"):
        save(fig=draw(figsize=(7, 2)))
    fig = draw(figsize=(figures.WIDE, 2))
    fig.axes[0].set_xlabel("share", fontsize=6)
    with pytest.raises(ValueError, match="'share' has 6 points"):
        save(fig=fig)
    fig.axes[0].set_xlabel("share", fontsize=7)
    save(fig=fig)
    assert (folder / "curve.png").exists()


def test_style_overrides_the_readers_settings_and_keeps_text_readable():
    matplotlib.rcParams["axes.titlesize"] = 3
    matplotlib.rcParams["lines.dash_capstyle"] = "round"
    figures.use_style()
    assert matplotlib.rcParams["lines.dash_capstyle"] == "butt"
    sizes = [matplotlib.rcParams[f"{k}.titlesize"] for k in ("axes",)]
    sizes += [matplotlib.rcParams[f"{k}.labelsize"] for k in ("axes", "xtick", "ytick")]
    assert min([*sizes, matplotlib.rcParams["legend.fontsize"]]) >= figures.MIN_FONT


def test_no_two_styles_share_a_cue():
    assert len(figures.STYLES) == len(figures.OKABE_ITO) == 8
    for cue in ("color", "marker", "linestyle"):
        assert len({style[cue] for style in figures.STYLES}) == 8


def test_numbers_become_plain_json_with_six_digits():
    found = provenance.plain(
        {
            "float": 1 / 3,
            "large": 123456789.0,
            "int": np.int64(1234567),
            "bool": np.bool_(True),
            "nan": [float("nan"), np.float32("nan"), None],
            "inf": -np.inf,
            "zero": -0.0,
            "array": np.array([[1 / 3, 2]]),
            "tensor": torch.tensor([2 / 3], requires_grad=True),
            "frame": pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
            "series": pandas.Series([0.1 + 0.2]),
            3: ("x", range(2)),
        }
    )
    assert provenance.dumps(found).splitlines() == [
        "{",
        ' "float": 0.333333,',
        ' "large": 123457000.0,',
        ' "int": 1234567,',
        ' "bool": true,',
        ' "nan": [null, null, null],',
        ' "inf": "-inf",',
        ' "zero": 0.0,',
        ' "array": [[0.333333, 2.0]],',
        ' "tensor": [0.666667],',
        ' "frame": {',
        '  "a": [1, 2],',
        '  "b": ["x", "y"]',
        " },",
        ' "series": [0.3],',
        ' "3": ["x", [0, 1]]',
        "}",
    ]
    with pytest.raises(TypeError, match="complex"):
        provenance.plain({"z": 1j})


def test_device_auto_is_recorded_as_the_device_it_stands_for(monkeypatch):
    run = provenance.Run("", "tiny", "default", "", parameters={"device": "auto"})
    for available, device in [(True, "cuda"), (False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert provenance.stamp(run)["device"] == device


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    provenance.write(tmp_path / "x", b"old")
    monkeypatch.setattr(provenance.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        provenance.write(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
