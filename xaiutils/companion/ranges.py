"""What values a parameter may take, as the end of its comment says: ``masks, at least 30``.

A range is the last clauses of a comment, after commas: ``at least A``, ``at most B``, ``above A``,
``below B``, ``A to B`` (both included), ``even``, ``one of a, b, c``. Of a list they hold for
every item; ``non-empty`` and ``increasing`` are said of the list itself.
"""

import itertools
import math
import re
from dataclasses import dataclass

GRAMMAR = (
    "at least A, at most B, above A, below B, A to B, even, non-empty, increasing or "
    "one of a, b, c, each after a comma at the end of the comment"
)
_NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_BOUND = re.compile(rf"(at least|at most|above|below) ({_NUMBER})")
_BETWEEN = re.compile(rf"({_NUMBER}) to ({_NUMBER})")
_FLAGS = ("even", "non-empty", "increasing")
_CHOICES = "one of "
# Prose that reads like a range must be one, or nobody would notice that it is not checked.
_LOOKS_LIKE = re.compile(
    rf"(?:^|, )(?:at least|at most|above|below|one of)\b|\b(?:at least|at most|above|below) "
    rf"{_NUMBER}|{_NUMBER} to {_NUMBER}(?:,|$)|(?:^|, )(?:{'|'.join(_FLAGS)})(?:,|$)",
    re.IGNORECASE,
)
# The names that torch gives to devices, and its way to number them.
DEVICES = '"auto" or a name as torch has it, such as "cpu", "cuda", "cuda:1"'
_DEVICE = re.compile(r"auto|(?:cpu|cuda|hpu|mps|mtia|xla|xpu)(?::(?:0|[1-9]\d*))?")


@dataclass(frozen=True)
class Range:
    """Values that are allowed.

    Parameters
    ----------
    text : str
        As the comment has it; empty if there is none.
    low, high : int or float
        Ends; `above` and `below` say that they are not allowed themselves.
    above, below : bool
    flags : frozenset of str
        Of "even", "non-empty" and "increasing".
    choices : tuple
        The only values; empty if there are others.
    """

    text: str = ""
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    flags: frozenset = frozenset()
    choices: tuple = ()

    def problem(self, value):
        """What is wrong with `value`, such as "is out of range"; None if it is allowed.

        Parameters
        ----------
        value : int, float, str, bool or list of these
            Of the parameter's type. Whatever the range, a float must be finite, an int must fit
            into 64 bits, and text must be writable as UTF-8.
        """
        if not isinstance(value, list):
            return self._wrong(value)
        for place, item in enumerate(value, start=1):
            if wrong := self._wrong(item):
                return f"has item {place}, {item!r}, that {wrong}"
        if "non-empty" in self.flags and not value:
            return "is empty"
        pairs = itertools.pairwise(value) if "increasing" in self.flags else ()
        return "does not increase from item to item" if any(b <= a for a, b in pairs) else None

    def _wrong(self, value):
        if isinstance(value, float) and not math.isfinite(value):
            return "is not a finite number"
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return "has more than 64 bits"
        if self.choices and value not in self.choices:
            return "is none of the choices"
        if isinstance(value, str):
            return None if value.isascii() or _is_text(value) else "cannot be written as UTF-8"
        inside = (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )
        return None if inside and not ("even" in self.flags and value % 2) else "is out of range"


def parse(comment, annotation):
    """The range at the end of a comment.

    Parameters
    ----------
    comment : str
    annotation : str
        Type of the parameter, such as "int" or "list[float]".

    Returns
    -------
    (str, Range)
        The comment without its range, and the range.

    Raises
    ------
    ValueError
        If a range is not well-formed, contradicts itself or does not fit the type.
    """
    kind = annotation.removeprefix("list[").removesuffix("]")
    parts = re.split(r",\s*", " ".join(comment.split()))
    chosen = [i for i, part in enumerate(parts) if part.startswith(_CHOICES)][:1]
    choices, end = (), len(parts)
    if chosen:
        (end,) = chosen
        choices = _choices([parts[end].removeprefix(_CHOICES), *parts[end + 1 :]], kind)
    start = end
    while start and _is_clause(parts[start - 1]):
        start -= 1
    prose, text = ", ".join(parts[:start]), ", ".join(parts[start:])
    if found := _LOOKS_LIKE.search(prose):
        raise ValueError(f"{found[0].strip(', ')!r} in {comment!r} is no range; allowed: {GRAMMAR}")
    own = Range(text, choices=choices, **_limits(parts[start:end], text, kind))
    _check(own, annotation, kind)
    return prose, own


def device_problem(value):
    """What is wrong with the name of a device; None if torch may know it."""
    return None if _DEVICE.fullmatch(value) else "is no device"


def _is_text(value):
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the command line that are no text
        return False
    return True


def _is_clause(part):
    return part in _FLAGS or bool(_BOUND.fullmatch(part) or _BETWEEN.fullmatch(part))


def _limits(clauses, text, kind):
    found = {}
    for clause in clauses:
        if between := _BETWEEN.fullmatch(clause):
            new = dict(zip(("low", "high"), between.groups(), strict=True))
        elif bound := _BOUND.fullmatch(clause):
            new = {"low" if bound[1] in ("at least", "above") else "high": bound[2]}
            if bound[1] in ("above", "below"):
                found[bound[1]] = True
        else:
            new = {clause: True}
        if both := new.keys() & found.keys():
            raise ValueError(f"{text!r} limits twice: {', '.join(sorted(both))}")
        found |= new
    flags = frozenset(flag for flag in _FLAGS if found.pop(flag, False))
    return {key: _number(v, kind) if key in ("low", "high") else v for key, v in found.items()} | {
        "flags": flags
    }


def _number(text, kind):
    if kind not in ("int", "float"):
        raise ValueError(f"{text} limits a value of type {kind}; numbers only")
    if kind == "int" and not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(f"{text} limits an int and is no whole number")
    if math.isinf(float(text)):
        raise ValueError(f"{text} is too large for a float")
    return int(text) if kind == "int" else float(text)


def _choices(texts, kind):
    if kind == "bool":
        raise ValueError("choices of a bool are true and false already")
    pattern = r"[^\s\"']+" if kind == "str" else _NUMBER
    for text in texts:
        if not re.fullmatch(pattern, text):
            raise ValueError(
                f"{text!r} is no choice; allowed: {'words' if kind == 'str' else 'numbers'} "
                "between commas up to the end of the comment"
            )
    found = tuple(text if kind == "str" else _number(text, kind) for text in texts)
    if len(set(found)) < len(found):
        raise ValueError(f"a choice stands twice among {', '.join(texts)}")
    return found


def _check(own, annotation, kind):
    """ValueError if no value can be in the range, or its words do not fit the type."""
    of_list = own.flags & {"non-empty", "increasing"}
    if of_list and annotation == kind:
        raise ValueError(f"{own.text!r}: {', '.join(sorted(of_list))} is said of lists only")
    if ("even" in own.flags and kind != "int") or (
        "increasing" in own.flags and kind not in ("int", "float")
    ):
        raise ValueError(f"{own.text!r} does not fit the type {annotation}")
    limited = own.low > -math.inf or own.high < math.inf or "even" in own.flags
    if own.choices and limited:
        raise ValueError(f"{own.text!r} has both limits and choices")
    low, high = own.low, own.high
    if kind == "int":  # the first and the last number inside
        low, high = low + own.above, high - own.below
        if "even" in own.flags and low > -math.inf:
            low += low % 2
        nothing = low > high
    else:
        nothing = low > high or (low == high and (own.above or own.below))
    if nothing:
        raise ValueError(f"{own.text!r} allows no value")
