"""Planted evidence: boards, reader, maps and the study's numbers, against brute force."""

import numpy as np
import pytest
import torch

from xaiutils.data import datasets
from xaiutils.studies.fidelity import planted

N = 42 * 42


@pytest.fixture(scope="module")
def data():
    return planted.boards(60, seed=3)


def logits(model, x):
    return model(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def margins(data):
    """Largest minus smallest logit of each clean board, and whether the reader is right."""
    out = logits(planted.Reader(0.0), data.x)[:, :10]
    return np.ptp(out, axis=1), out.argmax(1) == data.labels


def test_boards_hold_nine_test_digits_and_mark_the_labelled_one(data):
    small = planted._halved(datasets.mnist().test_images).reshape(10000, -1)
    labels = datasets.mnist().test_labels.numpy()
    known = {digit.tobytes(): label for digit, label in zip(small, labels, strict=True)}
    assert data.x.shape == (60, 2, 42, 42)
    slots, tiles = [], set()
    for (picture, marker), label in zip(data.x, data.labels, strict=True):
        rows, columns = np.nonzero(marker)
        assert len(rows) == 196 and set(np.unique(marker)) == {0, 1}
        top, left = rows.min(), columns.min()
        assert known[picture[top : top + 14, left : left + 14].tobytes()] == label
        slots.append((top, left))
        tiles |= {
            picture[r : r + 14, c : c + 14].tobytes() for r in (0, 14, 28) for c in (0, 14, 28)
        }
    assert set(slots) == {(r, c) for r in (0, 14, 28) for c in (0, 14, 28)}
    assert len(tiles) == 540 and tiles <= set(known)
    assert np.abs(data.x[:, 0] - planted.GREY).min() > 1 / 1024
    assert not np.array_equal(planted.boards(60, seed=4).x, data.x)


def test_halved_digits_are_means_of_four_pixels_in_8_bits():
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 0, 0], image[0, 0, 27, 26] = 1.0, 0.5
    small = planted._halved(image)
    assert small.shape == (1, 14, 14)
    assert small[0, 0, 0] * 255 == 64  # 63.75
    assert small[0, 13, 13] * 255 == pytest.approx(32)  # 31.875
    assert small.sum() * 255 == pytest.approx(96)


def test_reader_sees_the_marked_digit_and_nothing_else(data):
    model = planted.Reader(0.0)
    clean = logits(model, data.x)
    assert (clean.argmax(1) == data.labels).mean() > 0.85
    other = data.x.copy()
    other[:, 0] = np.where(other[:, 1] == 1, other[:, 0], 1 - other[:, 0])
    np.testing.assert_array_equal(logits(model, other), clean)
    other[:, 0] = np.where(other[:, 1] == 1, 1 - other[:, 0], other[:, 0])
    assert np.abs(logits(model, other) - clean).max(1).min() > 1
    np.testing.assert_array_equal(clean[:, 10], clean[:, :10].min(1))


def test_traces_by_hand():
    clean = np.zeros((42, 42), np.float32)
    half, board, dot = clean.copy(), clean.copy(), clean.copy()
    half[:, :21] = planted.GREY  # one line of 42 edges
    board[np.indices(clean.shape).sum(0) % 2 == 0] = planted.GREY  # every pair is an edge
    dot[5, 7] = planted.GREY  # 4 edges
    pictures = torch.from_numpy(np.stack([clean, half, board, dot, clean + planted.GREY]))
    pairs = 2 * 42 * 41
    edges = planted.Reader(1.0, "edges").traces(pictures)
    np.testing.assert_allclose(edges, [0, 2 * 42 / pairs, 2, 8 / pairs, 0], rtol=1e-6)
    count = planted.Reader(1.0, "count").traces(pictures)
    np.testing.assert_allclose(count, [0, 0.5, 0.5, 1 / N, 1], rtol=1e-6)


def test_penalty_is_dial_times_range_times_traces(data):
    """Everything hidden but the evidence: a dial of 9/8 makes a penalty of one median range."""
    x = data.x.copy()
    x[:, 0] = np.where(x[:, 1] == 1, x[:, 0], planted.GREY)
    found, clean = logits(planted.Reader(9 / 8), x), logits(planted.Reader(9 / 8), data.x)
    np.testing.assert_array_equal(found[:, :10], clean[:, :10])
    gained = found[:, 10] - found[:, :10].min(1)
    np.testing.assert_allclose(gained, planted._fitted()[2], rtol=1e-4)
    assert 0.3 < (found.argmax(1) == 10).mean() < 0.7
    assert (clean.argmax(1) != 10).all()


def test_a_third_channel_is_read_in_place_of_the_picture(data):
    model = planted.Reader(2.0)
    hidden = data.x.copy()
    hidden[:, 0] = planted.GREY
    intact = logits(model, np.concatenate([hidden, data.x[:, :1]], axis=1))
    np.testing.assert_array_equal(intact[:, :10], logits(model, data.x)[:, :10])
    penalty = intact[:, 10] - intact[:, :10].min(1)
    np.testing.assert_allclose(penalty, 2 * planted._fitted()[2], rtol=1e-4)


def test_maps_are_as_right_as_they_say(data):
    found = planted.maps(data)
    evidence = data.x[:, 1].astype(bool)
    assert list(found) == ["evidence", "gradient", "noisy", "half right", "random", "wrong"]
    np.testing.assert_array_equal(found["evidence"], evidence)
    assert (found["gradient"][~evidence] == 0).all()
    predicted = logits(planted.Reader(0.0), data.x).argmax(1)
    weights = np.abs(planted._fitted()[0][predicted, 0])
    inside = found["gradient"][evidence].reshape(60, 14, 14)
    np.testing.assert_allclose(inside, weights, rtol=1e-5)
    for name, right, wrong in (("half right", 98, 98), ("wrong", 0, 196)):
        marked = found[name] == 1
        assert (np.sum(marked & evidence, axis=(1, 2)) == right).all()
        assert (np.sum(marked & ~evidence, axis=(1, 2)) == wrong).all()
        assert set(np.unique(found[name])) == {0, 1}
    noise = found["noisy"] - evidence
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(found["random"].ravel(), evidence.ravel())[0, 1]) < 0.02


@pytest.fixture(scope="module", params=planted.ARTIFACTS)
def dialled(request):
    table = planted.dial((0.0, 4.0), artifact=request.param, n_images=40, steps=9, draws=50)
    return request.param, table


def values(table, dial, quantity):
    rows = table[(table.dial == dial) & (table.quantity == quantity)]
    return rows.set_index("method").value


@pytest.mark.parametrize("dial", [0.0, 4.0])
def test_the_drop_is_split_twice(dialled, dial):
    _, table = dialled
    d, f, p, information, added = (
        values(table, dial, quantity)
        for quantity in ("D", "F", "P", "information", "artifact_added")
    )
    np.testing.assert_allclose(f + p, d, atol=1e-6)
    np.testing.assert_allclose(information + added, d, atol=1e-6)
    np.testing.assert_allclose(values(table, dial, "P/D"), p / d)
    lead = values(table, dial, "F_evidence-F")
    np.testing.assert_allclose(lead, f["evidence"] - f, atol=1e-6)


def test_no_artifact_at_dial_0_and_the_same_under_mif_and_lif_masks(dialled):
    """LIF masks are complements: as many edges on the way, as many pixels at each step."""
    _, table = dialled
    assert (table[table.dial == 0].set_index("quantity").value["artifact_mif"] == 0).all()
    assert (values(table, 0.0, "artifact_added") == 0).all()
    mif, lif = (values(table, 4.0, f"artifact_{order}") for order in ("mif", "lif"))
    np.testing.assert_allclose(mif, lif, atol=1e-12)
    assert (mif > 0.02).all()


def test_artifact_of_the_count_by_brute_force():
    margin, right = margins(planted.boards(40))
    f = np.arange(10) / 9
    drop = right[:, None] & (4 * planted._fitted()[2] * f > margin[:, None])
    expected = np.trapezoid(drop.astype(float), f, axis=1).mean()
    table = planted.dial((4.0,), n_images=40, steps=9, draws=2)
    np.testing.assert_allclose(values(table, 4.0, "artifact_mif"), expected, atol=1e-12)


def test_artifact_of_one_compact_patch_by_brute_force():
    """The first of nine steps hides just the slot: two sides of it are edges, or three, or four."""
    data = planted.boards(40)
    margin, right = margins(data)
    marked = data.x[:, 1, ::14, ::14]  # (n, 3, 3)
    sides = (marked * np.array([[2, 3, 2], [3, 4, 3], [2, 3, 2]])).sum((1, 2))
    traces = 2 * 14 * sides / (2 * 42 * 41)
    drop = right & (45 * planted._fitted()[2] * traces > margin)
    assert 0.1 < drop.mean() < 0.9
    points, _ = planted.geometry(45.0, n_images=40, steps=9, draws=2)
    first = points[np.isclose(points.fraction, 1 / 9)]
    found = first.set_index(["artifact", "method", "curve"]).value["edges", "evidence", "truth"]
    assert found == pytest.approx(drop.mean())


def test_information_of_the_evidence_by_brute_force(dialled):
    """Nine steps: the first hides the evidence, and all boards get the answer of a grey digit."""
    data = planted.boards(40)
    _, right = margins(data)
    blank = data.x.copy()
    blank[:, 0] = planted.GREY
    grey = logits(planted.Reader(0.0), blank)[:, :10].argmax(1) == data.labels
    expected = (right.mean() - grey.mean()) * (1 - 1 / 18)
    assert values(dialled[1], 0.0, "information")["evidence"] == pytest.approx(expected, abs=1e-6)


def test_mask_swap_hides_what_the_next_board_marks():
    """Without an artifact, a swapped mask costs the boards whose neighbour has the same slot."""
    points, areas = planted.geometry(0.0, n_images=60, steps=9, ends=(1 / 9, 1.0), draws=20)
    data = planted.boards(60)
    slots = data.x[:, 1].reshape(60, -1).argmax(1)
    same = slots == np.roll(slots, 1)
    _, right = margins(data)
    blank = data.x.copy()
    blank[:, 0] = planted.GREY
    grey = logits(planted.Reader(0.0), blank)[:, :10].argmax(1) == data.labels
    expected = np.where(same, right.astype(float) - grey, 0).mean()
    assert expected > 0.02
    swap = points[(points.curve == "mask swap") & np.isclose(points.fraction, 1 / 9)]
    np.testing.assert_allclose(swap.value, expected, atol=1e-12)
    first = areas[(areas.curve == "mask swap") & (areas.f_max == 1 / 9)]
    np.testing.assert_allclose(first.value, expected / 18, atol=1e-12)
    assert (areas[areas.curve == "truth"].value == 0).all()
    np.testing.assert_allclose(areas.error, areas.value, atol=1e-12)
    assert set(areas.n) == {60}


def test_geometry_tells_scattered_from_compact_masks():
    points, areas = planted.geometry(2.0, n_images=40, steps=18, draws=50)
    at = points[np.isclose(points.fraction, 1 / 9)].set_index(["artifact", "method", "curve"]).value
    assert at["edges", "evidence", "truth"] < 0.05  # one patch
    assert at["edges", "evidence", "LIF"] > at["edges", "evidence", "truth"] + 0.1  # scattered
    assert at["edges", "compact", "LIF"] < 0.05
    assert at["count", "evidence", "LIF"] == at["count", "evidence", "truth"]
    area = areas.set_index(["artifact", "method", "curve", "f_max"])
    gap = (
        area.value["edges", "evidence", "LIF", 0.5] - area.value["edges", "evidence", "truth", 0.5]
    )
    row = area.loc[("edges", "evidence", "LIF", 0.5)]
    assert row.error == pytest.approx(gap)
    assert row.error_low < row.error < row.error_high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: planted.Reader(-1.0), "dial must be at least 0, got -1.0"),
        (lambda: planted.Reader(1.0, "both"), "artifact must be one of .*got 'both'"),
        (lambda: planted.boards(0), r"n must be in 1\.\.1111, got 0"),
        (lambda: planted.boards(1112), r"n must be in 1\.\.1111, got 1112"),
    ],
)
def test_wrong_parameters_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
