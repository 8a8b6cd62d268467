"""The order of the images, the random numbers, and the law of the crops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from pipeline.data.draws import CROP_UNIFORMS, FLIP_COLUMN, random_resized_crop, uniforms
from pipeline.data.plan import Plan, permutation

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):
    """splitmix64's finaliser on Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def uniform(seed, epoch, index, k):
    start = mix((mix((mix(seed) + epoch) % WORD) + index * GOLDEN) % WORD)
    return (mix((start + (k + 1) * GOLDEN) % WORD) >> 11) / 2**53


@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
    index=st.lists(st.integers(0, 2**40), max_size=4),
    count=st.integers(0, 4),
)
def test_uniforms_equal_the_definition(seed, epoch, index, count):
    drawn = uniforms(seed, epoch, torch.tensor(index, dtype=torch.int64), count)
    assert drawn.dtype == torch.float64 and drawn.shape == (len(index), count)
    assert drawn.tolist() == [[uniform(seed, epoch, i, k) for k in range(count)] for i in index]


def test_uniforms_never_change():
    """A run that is resumed after an update must see the same crops."""
    golden = [
        [0.7216982277862114, 0.4517610797443199, 0.7345783560647344],
        [0.3243499278092796, 0.043407756017256216, 0.4769305724878802],
    ]
    assert uniforms(3, 5, torch.tensor([0, 123456789]), 3).tolist() == golden
    assert uniforms(3, 5, torch.tensor([0, 123456789], dtype=torch.int32), 3).tolist() == golden


@pytest.mark.gpu
def test_uniforms_are_the_same_on_a_gpu():
    index = torch.arange(1000)
    drawn = uniforms(3, 5, index.cuda(), 23)
    assert drawn.is_cuda and torch.equal(drawn.cpu(), uniforms(3, 5, index, 23))


def grid():
    """Uniforms (32 seeds, 16 epochs, 64 indices, 16 numbers)."""
    index = torch.arange(64)
    return torch.stack(
        [torch.stack([uniforms(s, e, index, 16) for e in range(16)]) for s in range(32)]
    ).numpy()


@pytest.mark.parametrize("axis", range(4), ids=["seed", "epoch", "index", "number"])
def test_uniforms_and_their_neighbours_fill_the_square_evenly(axis):
    """Pearson's test of (u, next u along one axis) in 32 x 32 cells, and of the lowest bits."""
    u = np.moveaxis(grid(), axis, 0)
    assert u.min() >= 0 and u.max() < 1
    for a, b in ((u[:-1], u[1:]), (u[:-1] * 2**48 % 1, u[1:] * 2**48 % 1)):
        cells = np.histogram2d(a.ravel(), b.ravel(), bins=32, range=[[0, 1], [0, 1]])[0]
        expected = cells.sum() / cells.size
        chi2 = ((cells - expected) ** 2 / expected).sum()
        freedom = cells.size - 1
        assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_every_image_once(n):
    order = permutation(1, 2, n)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(n))


def test_permutation_depends_on_seed_and_epoch():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert permutation(0, 1, 50).tolist() != permutation(1, 0, 50).tolist()


def test_permutation_never_changes():
    assert permutation(1234, 0, 10).tolist() == [5, 6, 3, 9, 7, 4, 1, 2, 8, 0]
    assert permutation(1234, 1, 10).tolist() == [9, 2, 0, 7, 6, 1, 8, 4, 5, 3]


def test_permutation_is_uniform():
    """Every image comes at every place equally often, and after every other one."""
    n, epochs = 12, 6000
    orders = np.stack([permutation(7, epoch, n) for epoch in range(epochs)])
    places = np.stack([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    pairs = np.bincount((orders[:, :-1] * n + orders[:, 1:]).ravel(), minlength=n * n)
    pairs = pairs.reshape(n, n)[~np.eye(n, dtype=bool)]
    for counts, freedom in ((places, (n - 1) ** 2), (pairs, n * (n - 1) - 1)):
        expected = counts.sum() / counts.size
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


def torchvision_window(u, height, width, min_area):
    """RandomResizedCrop.get_params, with its random numbers taken from ``u``."""
    for attempt in range(10):
        target = height * width * (min_area + (1 - min_area) * u[attempt])
        low, high = math.log(3 / 4), math.log(4 / 3)
        aspect = math.exp(low + (high - low) * u[10 + attempt])
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(u[20] * (height - h + 1)), math.floor(u[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("min_area", [0.08, 0.25, 1.0])
def test_windows_equal_the_loop(min_area):
    rng = np.random.default_rng(0)
    u = rng.random((3000, CROP_UNIFORMS))
    height, width = np.exp(rng.uniform(0, 7, (2, 3000))).astype(np.int64)
    got = random_resized_crop(u, height, width, min_area)
    expected = [
        torchvision_window(*each, min_area)
        for each in zip(u, height.tolist(), width.tolist(), strict=True)
    ]
    assert got.dtype == np.int64 and got.tolist() == [list(window) for window in expected]


@given(
    u=st.lists(st.sampled_from([0.0, 0.5, 1 - 2**-53]), min_size=22, max_size=22),
    height=st.integers(1, 7000),
    width=st.integers(1, 7000),
)
def test_windows_lie_in_the_image(u, height, width):
    window = random_resized_crop(np.array([u]), np.array([height]), np.array([width]))
    top, left, h, w = window[0].tolist()
    assert top >= 0 and h >= 1 and top + h <= height
    assert left >= 0 and w >= 1 and left + w <= width


def kolmogorov_smirnov(a, b):
    """The largest distance between two distribution functions."""
    at = np.union1d(a, b)
    below = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (a, b)]
    return np.abs(below[0] - below[1]).max()


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 375), (32, 32), (100, 260), (260, 100), (9, 1000)]
)
def test_windows_follow_torchvisions_law(height, width):
    n = 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)]
    )
    u = uniforms(1, 2, torch.arange(n), CROP_UNIFORMS).numpy()
    ours = random_resized_crop(u, np.full(n, height), np.full(n, width))
    areas = [windows[:, 2] * windows[:, 3] for windows in (ours, theirs)]
    aspects = [windows[:, 3] / windows[:, 2] for windows in (ours, theirs)]
    for a, b in [*zip(ours.T, theirs.T, strict=True), areas, aspects]:
        assert kolmogorov_smirnov(a, b) < 1.95 * math.sqrt(2 / n)  # 1 in 1000 exceeds it


def test_training_plan_deals_the_permutation_and_drops_the_rest():
    plan = Plan(images=23, batch_size=5, train=True, seed=3)
    assert len(plan) == 4
    dealt = np.concatenate([plan.indices((2, batch)) for batch in range(4)])
    assert dealt.tolist() == permutation(3, 2, 23)[:20].tolist()
    assert plan.following((2, 2)) == (2, 3) and plan.following((2, 3)) == (3, 0)


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5, 5, 5, 3]), (1, [1] * 23), (99, [23])])
def test_evaluation_plan_deals_every_image_once_in_order(batch_size, sizes):
    plan = Plan(images=23, batch_size=batch_size, train=False, seed=3)
    batches = [plan.indices((0, batch)) for batch in range(len(plan))]
    assert [len(batch) for batch in batches] == sizes
    assert np.concatenate(batches).tolist() == list(range(23))
    assert plan.following((0, len(plan) - 1)) == (0, 0)


def test_the_draws_of_an_image_do_not_depend_on_its_batch():
    draws = []
    for batch_size in (5, 10):
        plan = Plan(images=20, batch_size=batch_size, train=True, seed=3)
        batches = range(len(plan))
        index = np.concatenate([plan.indices((2, batch)) for batch in batches])
        u = np.concatenate([plan.uniforms((2, batch)) for batch in batches])
        assert u.shape == (20, FLIP_COLUMN + 1)
        draws.append(u[np.argsort(index)])
    assert np.array_equal(*draws)
    assert draws[0][7, 3] == uniform(3, 2, 7, 3)
