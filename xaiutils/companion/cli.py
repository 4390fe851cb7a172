"""The command `xaiutils`: one door to explaining a file, fetching data, running and checking.

Each sub-command imports what it needs when it is called, so that asking for help takes no time.
"""

import argparse
import difflib
import io
import os
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from xaiutils.companion import stopping

_LONGEST = 50  # letters of a file's name in that of its picture: systems allow 255 bytes
_MOST_MASKS, _MOST_PIXELS = 100_000, 2048  # what a machine can hold
_MAKER = "xaiutils explain"  # noted in each picture, so that it can be made again

_USAGE = """\
usage: xaiutils COMMAND ...

Do local explanations of neural networks tell the truth? Explain a file of your own, rerun the
notebooks, look up what was found.

commands:
{commands}

options:
  -h, --help  this text; `xaiutils COMMAND --help` says all about a command
  --version   the version of the package

example:
  xaiutils explain photo.jpg
"""


def explain(arguments: list[str]) -> int:
    """Explain a file, print what was found and save the picture; returns the exit code."""
    options = vars(_explain_parser().parse_args(arguments))
    file, out, force = (options.pop(name) for name in ("file", "out", "force"))
    out = out or Path(f"{Path(file).stem[:_LONGEST]}_explained.png")
    if problem := _cannot_write(out, file, force):
        print(f"error: --out {out}: {problem}", file=sys.stderr)
        return 2
    import matplotlib

    matplotlib.use("agg")  # a picture is written, no window opened
    from xaiutils.companion import explain_file, provenance
    from xaiutils.companion.subject import Options
    from xaiutils.data.assets import AssetError

    try:
        report = explain_file.explain(file, Options(**options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except AssetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.text)
    try:
        provenance.write(out, report.png({"Software": _MAKER, "Description": report.text}))
    except OSError as error:
        print(f"error: {out} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"wrote {out}")
    return 0


def _cannot_write(out: Path, file: str, force: bool) -> str | None:
    """Why the picture must not be written there, or None."""
    if out.suffix.lower() != ".png":
        return "the name must end in .png"
    if not os.path.isdir(out.parent):  # which says no, where Path's may raise
        return f"there is no folder {out.parent} that one may enter"
    if not os.access(out.parent, os.W_OK):
        return f"the folder {out.parent.absolute()} is not writable"
    if os.path.isdir(out):
        return "is a folder"
    if not os.path.exists(out):
        return None
    if os.path.exists(file) and out.samefile(file):
        return "is the file to explain itself"
    return None if force or _is_ours(out) else "exists and was not made here; --force overwrites it"


def _is_ours(file: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return image.info.get("Software") == _MAKER
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
        return False


def _of(module: str) -> Callable:
    """The command line of another module, imported when it is called."""
    return lambda arguments: import_module(module).main(arguments)


# Name: what it does in a line, and the function from arguments to an exit code.
COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "explain": ("which parts of an image or a sound make a model answer as it does?", explain),
    "fetch": ("fetch and check weights, images and sounds ahead", _of("xaiutils.data.assets")),
    "run": ("run notebooks, with other parameters or seeds", _of("xaiutils.companion.run")),
    "claims": ("the claims of the papers and what was found", _of("xaiutils.companion.ledger")),
}


def main(argv: list[str] | None = None) -> int:
    """Command line.

    Parameters
    ----------
    argv : list of str, optional
        By default those the process was called with.

    Returns
    -------
    int
        What the sub-command returns: 0, 1 if it failed, 2 for what is not allowed; 130 after
        Ctrl-C, 143 after SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    name, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help", ""):
        commands = "\n".join(f"  {key:8}  {text}" for key, (text, _) in COMMANDS.items())
        print(_USAGE.format(commands=commands), end="")
        return 0 if name else 2
    if name == "--version":
        print(f"xaiutils {version()}")
        return 0
    if name not in COMMANDS:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        return 2
    return stopping.exit_code(COMMANDS[name][1], arguments)


def version() -> str:
    """Version of the package, from the working copy it always comes with."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]


def _unknown(name: str) -> str:
    if os.path.isfile(name):
        return f"no command {name!r}; did you mean xaiutils explain {name}?"
    close = difflib.get_close_matches(name, COMMANDS)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"no command {name!r}; {hint}allowed: {', '.join(COMMANDS)}"


def _whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    def whole_number(text):
        if not (text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
            up_to = f"to {most}" if most < 2**63 - 1 else "on"
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is no whole number from {least} {up_to}"
            )
        return int(text)

    return whole_number


def _given(text: str) -> str:
    if not text.strip():  # a variable of the shell that is not set
        raise argparse.ArgumentTypeError("is empty; leave the option out for the default")
    return text


def _explain_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xaiutils explain",
        description="Which parts of a photograph, or which times and frequencies of a sound, make\n"
        "a model answer as it does? LIME hides parts at random, asks the model again, and\n"
        "goes on until the most important parts are told apart from the rest. Prints a\n"
        "table and saves a picture.",
        epilog="example: xaiutils explain photo.jpg --top 5\n"
        "         xaiutils explain song.mp3 --at 61.5\n"
        "         xaiutils explain photo.jpg --model nets:small --size 32   (small in nets.py)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="image or sound; its content says which")
    parser.add_argument(
        "--model",
        type=_given,
        metavar="MODULE:NAME",
        help="your own model, from a module in this folder or an installed one: a torch.nn.Module, "
        "a function of a batch, or a function without arguments that returns one of the two. It "
        "gets images (B, 3, size, size) in [0, 1] or log-mel features (B, frames, 80) and returns "
        "(B, outputs), logits or probabilities. Default: EfficientNet-Lite0, or a singing detector",
    )
    parser.add_argument(
        "--target", type=_whole(0), metavar="CLASS",
        help="output to explain (default: the largest)",
    )  # fmt: skip
    parser.add_argument(
        "--top", type=_whole(1), metavar="K",
        help="parts to list, and to tell apart from the rest (default 3)",
    )  # fmt: skip
    parser.add_argument(
        "--masks", type=_whole(1, _MOST_MASKS), default=500, metavar="N",
        help="random masks a round, of at most 8 rounds (default 500)",
    )  # fmt: skip
    parser.add_argument(
        "--cells", type=_given, metavar="N|AxB",
        help="parts: about N superpixels, or a grid of A rows (of a sound: time steps) and B "
        "columns (frequency bands); default: superpixels of quickshift, for a sound 5x4",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=_whole(1, _MOST_PIXELS), metavar="PIXELS",
        help="side of the image the model gets: the central square, scaled (default 224)",
    )  # fmt: skip
    parser.add_argument(
        "--at", type=float, metavar="SECONDS",
        help="middle of the two seconds of sound that are explained (default: where the model is "
        "most certain)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=_whole(0), default=0, metavar="N", help="of the masks (default 0)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH.png",
        help="the picture (default: NAME_explained.png in this folder)",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true",
        help="overwrite the picture even if it was not made by this command",
    )  # fmt: skip
    return parser
