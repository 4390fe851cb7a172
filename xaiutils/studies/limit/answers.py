"""Answers of models to many masks, asked once: every way to LIME's coefficients is tried on them.

Where all 2^d masks cannot be tried the truth comes from two long runs that are independent of one
another. The product of an estimate's distances to both has the expectation of its squared distance
to the limit: their own noise adds nothing on average.

``python -m xaiutils.studies.limit.answers [NAME ...]`` asks the slow models anew (40 minutes on
two cores), writes ``data/answers`` and prints the hashes for `SHA256`; what an interrupted call was
told is kept.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from xaiutils import designs, segment
from xaiutils.classifiers import imagenet, singing
from xaiutils.companion.provenance import input_hashes
from xaiutils.data import assets, datasets
from xaiutils.perturb import Components, evaluate
from xaiutils.storage import Storable

CLOSE = 1e-3  # answers of one model on two machines differ by less
FOLDER = assets.DATA / "answers"
SHA256 = {
    "photographs": "b582bb99668307bbc9865d036740bc70a9559ca0507a162168d3c808f6d86ce1",
    "excerpts": "b69b1e912d26e114cded7861c47a2377b78c0bcde5f8fbaaa271ff9bff467ac2",
}


class Draw(NamedTuple):
    """A design, its number of masks, and how many times it is drawn."""

    design: str
    n: int
    times: int


TRUTH = Draw("folded", 2048, 2)
COMMON = (
    TRUTH,
    Draw("iid", 1000, 1),
    Draw("paired", 512, 1),
    Draw("folded", 512, 1),
    Draw("folded", 256, 2),
    Draw("folded", 128, 2),
)
# Up to 32 components there are folded masks in arrays of 64, and up to 23 orthogonal ones of 512.
PLANS = {
    "photographs": COMMON,
    "excerpts": (*COMMON, Draw("folded", 64, 2), Draw("orthogonal", 512, 1)),
}


class Game(NamedTuple):
    """One explained output of a model at one input: `answer` maps masks (n, d) to (n,)."""

    name: str
    d: int
    answer: Callable


def superpixels(n: int | None = None) -> list[Game]:
    """EfficientNet-Lite0's probability of its top class, quickshift superpixels, mean colours."""
    found = datasets.imagenet_samples()
    lite0 = torch.nn.Sequential(imagenet.load("efficientnet_lite0"), torch.nn.Softmax(dim=1)).eval()
    return [
        game(f"photograph {i + 1}", lite0, x, Components(segment.quickshift(x)))
        for i, x in enumerate(found.images.numpy()[:n])
    ]


def excerpts(n: int = 20) -> list[Game]:
    """The detector's probability of singing, 5 x 4 cells, the excerpt's mean in hidden ones.

    One excerpt, of voice and music, of each of the first `n` tracks.
    """
    detector = singing.load()
    found = datasets.singing_excerpts(0.0, n_per_track=1, seed=0)
    with torch.inference_mode():
        features = detector.features(found.waveforms[1 : 2 * n : 2]).numpy()  # with the voice
    cells = Components(segment.grid(features.shape[1:], 5, 4))
    return [
        game(f"excerpt {i + 1}", detector, x, cells, float(x.mean()))
        for i, x in enumerate(features)
    ]


def game(name: str, model, x, components: Components, filler="mean") -> Game:
    """The game of the model's largest output at `x`."""
    whole = evaluate(model, x, components, np.ones((1, components.d), bool), filler)[0]
    top = [int(whole.argmax())]

    def answer(masks):
        return evaluate(model, x, components, masks, filler, outputs=top)[:, 0]

    return Game(name, components.d, answer)


SLOW = {"photographs": superpixels, "excerpts": excerpts}


@dataclass(frozen=True, eq=False)
class Answers(Storable):
    """What games were told for all masks of a plan.

    Attributes
    ----------
    names : tuple of str
        Of the games.
    d : (games,)
    plan : tuple of str
        The draws, "folded 2048 x 2" for two of 2,048 folded masks.
    masks : tuple of str
        Digest of each game's masks, which are drawn again where they are needed.
    outputs : (games, n) float32
    """

    names: tuple[str, ...]
    d: np.ndarray
    plan: tuple[str, ...]
    masks: tuple[str, ...]
    outputs: np.ndarray

    _AXES: ClassVar[dict[str, tuple[str, str]]] = {
        "names": ("U", "games"), "d": ("iu", "games"), "plan": ("U", "draws"),
        "masks": ("U", "games"), "outputs": ("f", "games n"),
    }  # fmt: skip

    def first(self, n: int) -> Answers:
        """Those of the first n games."""
        return Answers(self.names[:n], self.d[:n], self.plan, self.masks[:n], self.outputs[:n])

    def runs(self, index: int) -> dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]]:
        """Masks (n, d) and outputs (n,) of each draw of one game, by design and n.

        Raises
        ------
        ValueError
            If the answers are not to the masks that `designs.draw` gives now.
        """
        found, start, d = {}, 0, int(self.d[index])
        parts = list(_drawn(d, index, self.plan))
        if _digest(parts) != self.masks[index]:
            raise ValueError(
                f"answers to {self.names[index]} are to other masks than `designs.draw` gives now; "
                "ask anew: python -m xaiutils.studies.limit.answers"
            )
        for design, masks in parts:
            told = self.outputs[index, start : start + len(masks)].astype(np.float64)
            start += len(masks)
            found.setdefault((design, len(masks)), []).append((masks, told))
        return found

    def gap(self, games: Sequence[Game], *, every: int = 500) -> float:
        """Largest distance to what these games say now of every 500th mask.

        Raises
        ------
        ValueError
            If it exceeds `CLOSE`, or the games are others.
        """
        worst = 0.0
        for index, one in enumerate(games):
            expected = self.names[index], int(self.d[index])
            if (one.name, one.d) != expected:
                raise ValueError(f"games must hold {expected}, got {(one.name, one.d)}")
            masks = np.concatenate([part for _, part in _drawn(one.d, index, self.plan)])[::every]
            told = self.outputs[index, ::every]
            worst = max(worst, float(np.abs(one.answer(masks) - told).max()))
        if worst > CLOSE:
            raise ValueError(
                f"games now say something that is {worst:.2g} from the kept answers, more than "
                f"{CLOSE:g}; ask anew: python -m xaiutils.studies.limit.answers"
            )
        return worst


def ask(games: Sequence[Game], plan: Sequence[Draw]) -> Answers:
    """Ask each game all masks of a plan."""
    bar = tqdm(games, "games", delay=5, leave=False)
    return _joined([_asked(index, one, plan) for index, one in enumerate(bar)])


def load(name: str) -> Answers:
    """What the slow models of this name, a key of `SLOW`, were told.

    Raises
    ------
    ValueError
        If the name is unknown, or the file is not the one whose hash is in `SHA256`.
    """
    _check(name)
    found = hashlib.sha256(_file(name).read_bytes()).hexdigest()
    if found != SHA256[name]:
        raise ValueError(f"{_file(name)} must have sha256 {SHA256[name]}, got {found}")
    return Answers.load(_file(name))


def _drawn(d, index, plan):
    """Design and masks (n, d) of each draw of a plan, for the game of this index."""
    rng = np.random.default_rng([index, 17])
    for text in plan:
        design, n, _, times = text.split()
        for _ in range(int(times)):
            yield design, designs.draw(int(n), d, design, rng)


def _asked(index, one, plan):
    texts = tuple(f"{draw.design} {draw.n} x {draw.times}" for draw in plan)
    parts = list(_drawn(one.d, index, texts))
    outputs = one.answer(np.concatenate([masks for _, masks in parts])).astype(np.float32)
    return Answers((one.name,), np.array([one.d]), texts, (_digest(parts),), outputs[None])


def _joined(asked):
    return Answers(
        tuple(one.names[0] for one in asked),
        np.concatenate([one.d for one in asked]),
        asked[0].plan,
        tuple(one.masks[0] for one in asked),
        np.concatenate([one.outputs for one in asked]),
    )


def _digest(parts):
    bits = b"".join(np.packbits(masks).tobytes() for _, masks in parts)
    return hashlib.sha256(bits).hexdigest()


def _check(name):
    if name not in SLOW:
        raise ValueError(f"name must be one of {', '.join(SLOW)}, got {name!r}")


def _file(name) -> Path:
    return FOLDER / f"{name}.npz"


def main(names: list[str]) -> None:
    """Ask the slow models of these names, or all, and keep their answers."""
    for name in names:
        _check(name)
    # What another version of the code or of the libraries was told is not taken for the answer.
    now = hashlib.sha256(str(input_hashes(assets.DATA.parent)).encode()).hexdigest()[:12]
    for name in names or SLOW:
        parts = []
        for index, one in enumerate(tqdm(SLOW[name](), name)):
            parts.append(assets.cache_folder() / "answers" / f"{name}-{index}-{now}.npz")
            if not parts[-1].exists():
                _asked(index, one, PLANS[name]).save(parts[-1])
        _joined([Answers.load(part) for part in parts]).save(_file(name))
        print(name, hashlib.sha256(_file(name).read_bytes()).hexdigest())
        for part in parts:
            part.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
