"""Figure 1: the six counts, what gives them, and what the figure does and does not show."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from fop_theory import hypergradient as hg
from fop_torch.studies import toy
from fop_torch.studies.toy import BOOTH, HIMMELBLAU, Run, Surface

SURFACES = {"booth": BOOTH, "himmelblau": HIMMELBLAU}


@cache
def runs(name: str) -> dict[str, Run]:
    """The three recorded runs of one panel; FOP in the only form that gives both counts."""
    surface = SURFACES[name]
    return {
        "SGD": toy.descend(surface, torch.optim.SGD, record=True),
        "Adam": toy.descend(surface, torch.optim.Adam, record=True),
        "FOP": toy.descend_fop(surface, product="MM", order="m-first", record=True),
    }


@pytest.mark.claim("fig-1-booth-sgd", shows="value", by="experiment")
def test_booth_sgd(measured) -> None:
    measured("fig-1-booth-sgd", runs("booth")["SGD"].counts[0])


@pytest.mark.claim("fig-1-booth-adam", shows="value", by="experiment")
def test_booth_adam(measured) -> None:
    measured("fig-1-booth-adam", runs("booth")["Adam"].counts[0])


@pytest.mark.claim("fig-1-booth-fop", shows="value", by="experiment")
def test_booth_fop(measured) -> None:
    measured("fig-1-booth-fop", runs("booth")["FOP"].counts[0])


@pytest.mark.claim("fig-1-himmelblau-sgd", shows="value", by="experiment")
def test_himmelblau_sgd(measured) -> None:
    measured("fig-1-himmelblau-sgd", runs("himmelblau")["SGD"].counts[0])


@pytest.mark.claim("fig-1-himmelblau-adam", shows="value", by="experiment")
def test_himmelblau_adam(measured) -> None:
    measured("fig-1-himmelblau-adam", runs("himmelblau")["Adam"].counts[0])


@pytest.mark.claim("fig-1-himmelblau-fop", shows="value", by="experiment")
def test_himmelblau_fop(measured) -> None:
    measured("fig-1-himmelblau-fop", runs("himmelblau")["FOP"].counts[0])


def closed_form_count(surface: Surface, gradient, product: str, order: str) -> int:
    """FOP in NumPy float32 with the closed-form hypergradients: no torch, no autograd."""
    f32 = np.float32
    theta, M = np.array(surface.start, f32)[:, None], np.eye(2, dtype=f32)
    lr, hyper_lr = f32(surface.lr), f32(toy.HYPER_LR)
    before = used = None
    for step in range(10_000):
        if surface.loss(theta)[0] < toy.THRESHOLD:
            return step
        G = gradient(theta)
        learned = M
        if before is not None:
            at = M if order == "printed" else used
            if product == "MMT":
                slope = hg.hypergradient(G, before, at, lr)
            else:
                slope = -lr * (G @ before.T @ at.T + at.T @ G @ before.T)
            learned = M - hyper_lr * slope
        used = learned if order == "m-first" else M
        P = used @ used.T if product == "MMT" else used @ used
        theta, M, before = theta - lr * (P @ G), learned, G
    return -1


@pytest.mark.claim("ours-fig-1-formula", shows="holds", by="numeric")
@pytest.mark.parametrize(
    ("product", "order", "counts"),
    [("MM", "m-first", (543, 289)), ("MMT", "m-first", (540, 289)), ("MMT", "printed", (536, 291))],
)
def test_closed_forms_give_the_same_counts_as_autograd(product: str, order: str, counts: tuple[int, int]) -> None:
    from fop_theory import objectives

    gradients = (objectives.booth_gradient, objectives.himmelblau_gradient)
    for surface, gradient, count in zip((BOOTH, HIMMELBLAU), gradients, counts, strict=True):
        assert toy.descend_fop(surface, product=product, order=order).counts[0] == count
        assert closed_form_count(surface, gradient, product, order) == count


@pytest.mark.claim("ours-fig-1-formula", shows="holds", by="experiment")
def test_only_the_product_without_transpose_gives_both_counts_at_one_hyper_lr() -> None:
    """Nine forms of FOP, 161 values of rho: the pair (543, 289) belongs to one form alone."""
    hyper_lrs = np.round(np.arange(0.009, 0.01101, 0.0000125), 7)
    fitting = {}
    for product in toy.PRODUCTS:
        for order in toy.ORDERS:
            booth, himmelblau = (
                toy.descend_fop(s, product=product, order=order, hyper_lr=hyper_lrs, limit=600).counts
                for s in (BOOTH, HIMMELBLAU)
            )
            hits = hyper_lrs[(booth == 543) & (himmelblau == 289)]
            if len(hits):
                fitting[product, order] = hits
    assert list(fitting) == [("MM", "m-first")]
    assert 0.01 in fitting["MM", "m-first"]
    assert fitting["MM", "m-first"].max() - fitting["MM", "m-first"].min() < 1e-4


@pytest.mark.claim("ours-fig-1-starts", shows="holds", by="experiment")
def test_few_starts_give_the_counts_of_sgd_and_adam() -> None:
    """On a grid of spacing 0.1, both counts together leave four integer starts and one."""
    booth = toy.starts_with_count(BOOTH, torch.optim.SGD, 832, toy.grid(10))
    both = toy.starts_with_count(BOOTH, torch.optim.Adam, 6221, booth)
    assert booth.shape == (2, 282)
    assert {tuple(start) for start in np.round(both.T, 6)} == {(-6, 2), (0, -4), (2, 10), (8, 4)}
    himmelblau = toy.starts_with_count(HIMMELBLAU, torch.optim.SGD, 386, toy.grid(6))
    both = toy.starts_with_count(HIMMELBLAU, torch.optim.Adam, 5398, himmelblau)
    assert himmelblau.shape == (2, 15)
    assert {tuple(start) for start in np.round(both.T, 6)} == {(0, -1)}


@pytest.mark.claim("fig-1-adam-other-minimum", shows="matches", by="experiment")
def test_adam_ends_in_another_global_minimum() -> None:
    def nearest(run: Run) -> int:
        gaps = [np.linalg.norm(run.ends[:, 0] - np.array(minimum)) for minimum in HIMMELBLAU.minima]
        assert min(gaps) < 1e-3
        return int(np.argmin(gaps))

    ends = {name: nearest(run) for name, run in runs("himmelblau").items()}
    assert ends["SGD"] == ends["FOP"] != ends["Adam"]


@pytest.mark.claim("fig-1-fop-fewer-iterations", shows="matches", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("product", toy.PRODUCTS)
@pytest.mark.parametrize("order", toy.ORDERS)
def test_fop_needs_fewer_steps_at_the_same_learning_rate_in_every_form(name: str, product: str, order: str) -> None:
    fop = toy.descend_fop(SURFACES[name], product=product, order=order).counts[0]
    assert 0 < fop < runs(name)["SGD"].counts[0] < runs(name)["Adam"].counts[0]


@pytest.mark.claim("fig-1-more-aggressive", shows="matches", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
def test_the_longest_step_is_fop_s(name: str) -> None:
    longest = {method: np.linalg.norm(toy.steps(run), axis=1).max() for method, run in runs(name).items()}
    assert longest["FOP"] > 5 * longest["SGD"] > 5 * longest["Adam"]


@pytest.mark.claim("fig-1-jagged-paths", shows="matches", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
def test_fop_turns_most_in_the_mean(name: str) -> None:
    mean = {method: toy.turns(run).mean() for method, run in runs(name).items()}
    assert mean["FOP"] > 1.3 * max(mean["SGD"], mean["Adam"])


@pytest.mark.claim("fig-1-jagged-paths", shows="differs", by="experiment")
@pytest.mark.claim("fig-1-changes-direction-rapidly", shows="differs", by="experiment")
def test_on_himmelblau_the_sharpest_turn_and_the_most_turning_are_adam_s() -> None:
    turns = {method: toy.turns(run) for method, run in runs("himmelblau").items()}
    assert turns["Adam"].max() > turns["FOP"].max()
    assert turns["Adam"].sum() > 3 * turns["FOP"].sum()
    assert turns["FOP"].sum() < 1.02 * turns["SGD"].sum()


@pytest.mark.claim("fig-1-changes-direction-rapidly", shows="matches", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
def test_one_step_of_fop_turns_ten_times_as_far_as_one_of_sgd(name: str) -> None:
    assert toy.turns(runs(name)["FOP"]).max() > 10 * toy.turns(runs(name)["SGD"]).max()


@pytest.mark.claim("fig-1-adam-non-stochastic", shows="differs", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
def test_adam_is_fast_on_the_same_deterministic_problem_with_another_learning_rate(name: str) -> None:
    """Nothing is stochastic here either; only the learning rate changed."""
    count, lr = toy.fewest_steps(SURFACES[name], torch.optim.Adam, np.geomspace(0.1, 1, 11))
    assert count * 20 < runs(name)["Adam"].counts[0]
    assert lr > 20 * SURFACES[name].lr


@pytest.mark.claim("fig-1-adam-non-stochastic", shows="differs", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
def test_noise_does_not_make_adam_fast(name: str) -> None:
    """The other half of the counterfactual: the figure's learning rate, and noise of five sizes, 20 runs each."""
    noise = np.repeat([0.01, 0.1, 1.0, 10.0, 100.0], 20)
    counts = toy.descend(SURFACES[name], torch.optim.Adam, noise=noise).counts
    plain = runs(name)["Adam"].counts[0]
    assert (counts[:20] > 0).all()  # little noise: still converges, and no faster than a tenth
    assert (counts[counts > 0] > 0.8 * plain).all()
    assert (counts[-20:] < 0).all()  # much noise: never arrives


@pytest.mark.claim("ours-fig-1-tuned", shows="holds", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
def test_a_tuned_learning_rate_gains_more_than_fop_did(name: str) -> None:
    surface = SURFACES[name]
    count, _ = toy.fewest_steps(surface, torch.optim.SGD, np.geomspace(surface.lr, 20 * surface.lr, 21))
    assert count * 5 < runs(name)["FOP"].counts[0]


@pytest.mark.claim("ours-fig-1-scalar", shows="holds", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("order", toy.ORDERS)
def test_one_learned_number_needs_fewer_steps_than_the_learned_matrix(name: str, order: str) -> None:
    scalar = toy.descend_fop(SURFACES[name], scalar=True, order=order).counts[0]
    matrix = toy.descend_fop(SURFACES[name], order=order).counts[0]
    assert 0 < scalar < 0.8 * matrix


@pytest.mark.claim("ours-fig-1-conditioning", shows="holds", by="experiment")
@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize(("product", "order"), [("MM", "m-first"), ("MMT", "printed")])
def test_the_problem_that_fop_ends_with_is_worse_conditioned(name: str, product: str, order: str) -> None:
    surface = SURFACES[name]
    run = toy.descend_fop(surface, product=product, order=order, record=True)
    P, preconditioned = toy.spectra(run, surface, product)
    plain = np.linalg.cond(surface.hessian(run.ends[:, 0].astype(float)))
    assert P[-1].min() > 1
    assert preconditioned[-1, 1] / preconditioned[-1, 0] > 5 * plain


def test_a_batch_is_its_columns() -> None:
    """What a column does must not depend on its neighbours."""
    starts = np.array([[-6.0, 0.0, 3.0], [2.0, -4.0, 3.0]])
    together = toy.descend_fop(BOOTH, start=starts, hyper_lr=0.01)
    alone = [toy.descend_fop(BOOTH, start=start).counts[0] for start in starts.T]
    np.testing.assert_array_equal(together.counts, alone)
    together = toy.descend(BOOTH, torch.optim.Adam, start=starts)
    np.testing.assert_array_equal(together.counts[:2], [6221, 6221])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: toy.descend_fop(BOOTH, product="MN"), "product: expected one of MMT, MM, MTM, got 'MN'"),
        (lambda: toy.descend_fop(BOOTH, order="later"), "order: expected one of printed, exact, m-first, got 'later'"),
        (lambda: toy.descend(BOOTH, torch.optim.SGD, start=[1.0, 2.0, 3.0]), r"start: expected \[2\] or \[2, N\]"),
        (lambda: toy.steps(toy.descend(BOOTH, torch.optim.SGD)), "run: expected a recorded run"),
        (lambda: toy.spectra(runs("booth")["SGD"], BOOTH, "MM"), "run: expected a run of descend_fop"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
