"""Certificates for one step with a fixed preconditioner: proofs that are identities, and programs that suggest them.

Who asks for the worst case of one step over a class of functions asks about a few vectors: the start x, where f has
the gradient g, the end y, with the gradient h, and the image p = P g. The class says which inequalities they obey
(`smooth_slack`, `strongly_convex_slack`, `descent.pl_slack`, `operator_slack`). The worst case is then a semidefinite
program in their inner products (Drori and Teboulle 2014; Taylor, Hendrickx and Glineur 2017), which PEPit writes down
and a solver solves (`worst_change`, `worst_factor`).

A dual solution is a proof: claim = weighted inequalities + squares. Such proofs stand here in closed form, for all
parameters at once (`Certificate`), and to check one is to expand it. An identity between inner products that holds
for numbers holds for vectors of every length, for both sides are sums over coordinates.

PEPit is needed by what solves, and imported there.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from fop_theory import checks, descent
from fop_theory.algebra import inner, root


class Point(NamedTuple):
    """A point, the gradient there (columns `[n, 1]`), and `f - f*`."""

    x: Any
    g: Any
    gap: Any


class Term(NamedTuple):
    """One summand of a certificate: a weight and what it weighs, neither of which is negative.

    Attributes:
        name: Which inequality, or "square".
        weight: Depends on the parameters alone.
        value: The slack of an inequality, or a squared norm.
    """

    name: str
    weight: Any
    value: Any


class Certificate(NamedTuple):
    """A claim `margin >= 0` and its proof: the margin equals the sum of the terms."""

    margin: Any
    terms: tuple[Term, ...]

    def remainder(self) -> Any:
        """Margin minus terms: zero, for every value of every symbol."""
        return self.margin - sum(term.weight * term.value for term in self.terms)


# ---------------------------------------------------------------------------------------
# What the classes say of finitely many points


def smooth_slack(start: Point, stop: Point, smoothness: Any) -> Any:
    """What an L-Lipschitz gradient leaves: `f(x) - f(y) + L/4 |x-y|^2 - <g+h, x-y>/2 - |g-h|^2 / (4 L)`.

    Points with gradients and values belong to a function with an L-Lipschitz gradient, convex or not, if and only
    if this is not negative for each ordered pair of them (Taylor, Hendrickx and Glineur 2017, Theorem 3.10).

    Args:
        start: x with its gradient g.
        stop: y with its gradient h.
        smoothness: L.

    Raises:
        ValueError: If L is not positive or a shape does not fit.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    move, turn = start.x - stop.x, start.g - stop.g
    return (
        start.gap - stop.gap + smoothness * inner(move, move) / 4
        - inner(start.g + stop.g, move) / 2 - inner(turn, turn) / (4 * smoothness)
    )  # fmt: skip


def strongly_convex_slack(start: Point, stop: Point, smoothness: Any, mu: Any) -> Any:
    """What strong convexity with an L-Lipschitz gradient leaves of `f(x) - f(y) - <h, x-y>`.

    `L/(2 (L-mu)) (|g-h|^2 / L + mu |x-y|^2 - 2 mu/L <g-h, x-y>)` is subtracted. Not negative for each ordered pair
    if and only if the points belong to such a function (Taylor, Hendrickx and Glineur 2017, Theorem 4).

    Args:
        start: x with its gradient g.
        stop: y with its gradient h.
        smoothness: L.
        mu: Constant of strong convexity, below L.

    Raises:
        ValueError: If L is not positive, mu is not below it or a shape does not fit.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    mu = checks.scalar("mu", mu, low=0)
    if mu == smoothness:
        raise ValueError(f"mu: expected a number below the smoothness, got {mu!r}")
    move, turn = start.x - stop.x, start.g - stop.g
    curved = inner(turn, turn) / smoothness + mu * inner(move, move) - 2 * mu * inner(turn, move) / smoothness
    return start.gap - stop.gap - inner(stop.g, move) - smoothness * curved / (2 * (smoothness - mu))


def operator_slack(g: Any, image: Any, low: Any, high: Any) -> Any:
    """What a spectrum in `[low, high]` leaves for `p = P g`: `<p - low g, high g - p>`.

    A pair g, p belongs to a symmetric P with such a spectrum if and only if this is not negative (`operator`).

    Args:
        g: `[n, 1]`.
        image: p, `[n, 1]`.
        low: Smallest eigenvalue of P.
        high: Largest eigenvalue of P.

    Raises:
        ValueError: If a shape does not fit.
    """
    g = checks.matrix("g", g, shape=(None, 1))
    image = checks.matrix("image", image, shape=(g.shape[0], 1))
    checks.finite(low=low, high=high)
    return inner(image - low * g, high * g - image)


def operator(g: Any, image: Any, low: Any, high: Any) -> np.ndarray:
    """A symmetric P with eigenvalues in `[low, high]` and `P g = image`: why `operator_slack` is all there is to ask.

    With `c` and `r` the interval's middle and half its length the slack says `|p - c g| <= r |g|`. A reflection
    takes g to the direction of `p - c g`; P is c plus that reflection, shrunk.

    Args:
        g: `[n, 1]`, not zero.
        image: p, `[n, 1]`, with an `operator_slack` that is not negative.
        low: Smallest eigenvalue allowed.
        high: Largest.

    Returns:
        `[n, n]` in floats.

    Raises:
        ValueError: If g is zero or there is no such P.
    """
    g = np.asarray(checks.matrix("g", g, shape=(None, 1)), dtype=float)
    image = np.asarray(checks.matrix("image", image, shape=g.shape), dtype=float)
    checks.finite(low=low, high=high)
    middle, length = (low + high) / 2, float(np.linalg.norm(g))
    if length == 0:
        raise ValueError("g: expected a vector that is not zero")
    aside = image - middle * g
    shrink = float(np.linalg.norm(aside)) / length
    if shrink > (high - low) / 2 + 1e-12 * abs(high):
        raise ValueError(f"image: expected P g for a P with eigenvalues in [{low}, {high}], got {image!r}")
    P = middle * np.eye(len(g))
    if shrink == 0:
        return P
    here, there = g / length, aside / np.linalg.norm(aside)
    # Two reflections take one to the other, along their difference and along their sum: the longer one is exact.
    sign = -1 if float((here * there).sum()) < 0 else 1
    mirror = here + sign * there
    size = float((mirror**2).sum())
    return P + shrink * sign * (2 / size * mirror @ mirror.T - np.eye(len(g)))


# ---------------------------------------------------------------------------------------
# Proofs without a solver


def deciding(low: Any, high: Any, size: Any, smoothness: Any) -> tuple[Any, Any]:
    """The eigenvalue of P with the smallest `descent.decrease`, and the other end of the spectrum.

    Args:
        low: Smallest eigenvalue of P.
        high: Largest eigenvalue of P.
        size: Step size eta.
        smoothness: L.

    Returns:
        `(low, high)` up to the best step, `(high, low)` beyond it.

    Raises:
        ValueError: If L is not positive or a number is not finite.
    """
    checks.finite(low=low, high=high, size=size)
    return (low, high) if size <= descent.best_step(low, high, smoothness) else (high, low)


def gain(decrease: Any, balance: Any, smoothness: Any) -> Any:
    """The part of `|g|^2 / 2` by which f falls in a step that pays for the new gradient too (`descent_certificate`).

    Args:
        decrease: `descent.decrease` of the deciding eigenvalue.
        balance: s, at least 1, which is the plain descent inequality.
        smoothness: L.

    Returns:
        `((s + 1) decrease - (s - 1) / L) / 2`.

    Raises:
        ValueError: If s is below 1 or L is not positive.
    """
    balance = checks.scalar("balance", balance, low=1)
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    checks.finite(decrease=decrease)
    return ((balance + 1) * decrease - (balance - 1) / smoothness) / 2


def price(balance: Any, smoothness: Any) -> Any:
    """The part of `|h|^2 / 2`, h the new gradient, that the step pays: `(s - 1) / (2 L s)`.

    Args:
        balance: s, at least 1.
        smoothness: L.

    Raises:
        ValueError: If s is below 1 or L is not positive.
    """
    balance = checks.scalar("balance", balance, low=1)
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    return (balance - 1) / (2 * smoothness * balance)


def descent_certificate(
    start: Point, stop: Point, image: Any, end: Any, far: Any, size: Any, smoothness: Any, balance: Any = 1
) -> Certificate:
    """`f(y) + price |h|^2 / 2 <= f(x) - gain |g|^2 / 2` for the step `y = x - eta P g`.

    With s = 1 this is the descent inequality of Theorem 2A. It needs no convexity: one pair of points of a function
    with an L-Lipschitz gradient, one vector and its image under P, two squares.

    Args:
        start: x with its gradient g.
        stop: y with its gradient h.
        image: p = P g.
        end: The eigenvalue of P that decides (`deciding`).
        far: The other end of the spectrum, another number.
        size: Step size eta, at most `2 / (L high)`.
        smoothness: L.
        balance: s, at least 1.

    Returns:
        The certificate.

    Raises:
        ValueError: If the ends are equal or a shape does not fit.
    """
    image = checks.matrix("image", image, shape=(start.g.shape[0], 1))
    checks.finite(end=end, far=far, size=size, smoothness=smoothness, balance=balance)
    if end == far:
        raise ValueError(f"far: expected another number than end = {end!r}; a multiple of the identity needs no P")
    turn = stop.g - balance * (start.g - smoothness * size * image)
    aside = image - end * start.g
    slope = size * (1 - size * smoothness * end) / (far - end)
    decrease = descent.decrease(end, size, smoothness)
    margin = (
        start.gap - gain(decrease, balance, smoothness) * inner(start.g, start.g) / 2
        - stop.gap - price(balance, smoothness) * inner(stop.g, stop.g) / 2
    )  # fmt: skip
    return Certificate(margin, (
        Term("L-Lipschitz gradient", 1, smooth_slack(start, stop, smoothness)),
        Term("spectrum of P", (balance + 1) * slope / 2, operator_slack(start.g, image, end, far)),
        Term("square", 1 / (4 * smoothness * balance), inner(turn, turn)),
        Term("square", (balance + 1) * (slope - smoothness * size**2 / 2) / 2, inner(aside, aside)),
    ))  # fmt: skip


def pl_certificate(
    start: Point, stop: Point, image: Any, end: Any, far: Any, size: Any, smoothness: Any, mu: Any, balance: Any
) -> Certificate:
    """Theorem 2E: `(1 + mu price) (f(y) - f*) <= (1 - mu gain) (f(x) - f*)`.

    `descent_certificate` and the PL inequality twice: at x, as in the paper, and at y.

    Args:
        start: x with its gradient g.
        stop: y with its gradient h.
        image: p = P g.
        end: The eigenvalue of P that decides (`deciding`).
        far: The other end of the spectrum, another number.
        size: Step size eta, at most `2 / (L high)`.
        smoothness: L.
        mu: PL constant.
        balance: s, from 1 to `most_balance`.

    Returns:
        The certificate.

    Raises:
        ValueError: If the ends are equal or a shape does not fit.
    """
    checks.finite(mu=mu)
    step = descent_certificate(start, stop, image, end, far, size, smoothness, balance)
    taken, paid = gain(descent.decrease(end, size, smoothness), balance, smoothness), price(balance, smoothness)
    return Certificate((1 - mu * taken) * start.gap - (1 + mu * paid) * stop.gap, (
        *step.terms,
        Term("PL inequality at the start", taken, descent.pl_slack(start.g, start.gap, mu)),
        Term("PL inequality at the end", paid, descent.pl_slack(stop.g, stop.gap, mu)),
    ))  # fmt: skip


def pl_factor(low: Any, high: Any, size: Any, smoothness: Any, mu: Any, balance: Any = None) -> Any:
    """Theorem 2E: contraction of `f - f*` in one step, f PL, convex or not: `(1 - mu gain) / (1 + mu price)`.

    Args:
        low: Smallest eigenvalue of P, positive.
        high: Largest eigenvalue of P.
        size: Step size eta, `eta L high <= 2`.
        smoothness: L.
        mu: PL constant.
        balance: s, from 1 (Theorem 2A) to `most_balance`; the best one by default.

    Returns:
        The factor.

    Raises:
        ValueError: If P is not positive definite, or the step or the balance is not admissible.
    """
    plain = descent.factor(low, high, size, smoothness, mu)
    decrease = descent.decrease(deciding(low, high, size, smoothness)[0], size, smoothness)
    largest = not decrease < 1 / smoothness
    if largest and balance is None:
        # P is a multiple of the identity and the step 1/L: s has no best value, and this is the limit.
        return (1 - mu / smoothness) / (1 + mu / (2 * smoothness))
    most = None if largest else max(1, most_balance(decrease, smoothness))
    if balance is None:
        # Between 1 and the largest: rounding may put it a unit in the last place outside.
        balance = min(max(1, best_balance(decrease, smoothness, mu)), most)
    balance = checks.scalar("balance", balance, low=1, high=most)
    if balance == 1:
        return plain
    return (1 - mu * gain(decrease, balance, smoothness)) / (1 + mu * price(balance, smoothness))


def most_balance(decrease: Any, smoothness: Any) -> Any:
    """The largest s for which `gain` is not negative: `(1 + L decrease) / (1 - L decrease)`.

    Args:
        decrease: `descent.decrease` of the deciding eigenvalue, below 1/L.
        smoothness: L.

    Raises:
        ValueError: If L is not positive or the decrease not below 1/L.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    decrease = checks.scalar("decrease", decrease, high=1 / smoothness, strict=True)
    return (1 + smoothness * decrease) / (1 - smoothness * decrease)


def best_balance(decrease: Any, smoothness: Any, mu: Any) -> Any:
    """The s with the smallest `pl_factor`.

    It is the positive root of `(2 + q) s^2 - 2 q s - q = 2 (1 - q) / (1 - L decrease)`, q = mu / L.

    Args:
        decrease: `descent.decrease` of the deciding eigenvalue, below 1/L.
        smoothness: L.
        mu: PL constant.

    Raises:
        ValueError: If L is not positive or the decrease not below 1/L.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    decrease = checks.scalar("decrease", decrease, high=1 / smoothness, strict=True)
    mu = checks.scalar("mu", mu, low=0)
    q, left = mu / smoothness, 1 - smoothness * decrease
    return (q + root(q**2 + (2 + q) * (q + 2 * (1 - q) / left))) / (2 + q)


def strongly_convex_certificate(
    start: Point, stop: Point, size: Any, smoothness: Any, mu: Any, end: Any
) -> Certificate:
    """Theorem 2D where P = I: `f(y) - f* <= (1 - eta end)^2 (f(x) - f*)` for the step `y = x - eta g`.

    With a preconditioner it is read in P's geometry: for `F(phi) = f(root phi)`, `P = root root^T`, whose constants
    are mu times the smallest and L times the largest eigenvalue. Three inequalities, between x, y and the minimizer,
    and two squares. (The multipliers are those of Taylor, Hendrickx and Glineur 2018.)

    Args:
        start: x, measured from the minimizer, with its gradient g.
        stop: y, measured from the minimizer, with its gradient h.
        size: Step size eta, at most `2 / L`.
        smoothness: L.
        mu: Constant of strong convexity, below L.
        end: The curvature that decides: mu up to the step `2 / (L + mu)`, L from there on.

    Returns:
        The certificate.

    Raises:
        ValueError: If `end` is neither mu nor L, or an argument does not fit.
    """
    checks.finite(size=size, smoothness=smoothness, mu=mu, end=end)
    if end not in (mu, smoothness):
        raise ValueError(f"end: expected mu = {mu!r} or the smoothness {smoothness!r}, got {end!r}")
    zero = start.x - start.x
    best, spread, total = Point(zero, zero, 0), smoothness - mu, (smoothness + mu) * size
    if end == mu:
        kept = 1 - size * mu
        turn = stop.g + (total - 1) * start.g - smoothness * size * mu * start.x
        weight = smoothness * size * (2 - total)
    else:
        kept = size * smoothness - 1
        turn = stop.g + start.g - smoothness * (2 - size * smoothness) * start.x
        weight = (2 - size * smoothness) * (total - 2)
    aside = start.g - end * start.x
    return Certificate(kept**2 * start.gap - stop.gap, (
        Term("strong convexity, start to end", kept, strongly_convex_slack(start, stop, smoothness, mu)),
        Term("strong convexity, minimizer to start", kept * (1 - kept),
             strongly_convex_slack(best, start, smoothness, mu)),
        Term("strong convexity, minimizer to end", 1 - kept, strongly_convex_slack(best, stop, smoothness, mu)),
        Term("square", 1 / (2 * spread), inner(turn, turn)),
        Term("square", weight / (2 * spread), inner(aside, aside)),
    ))  # fmt: skip


# ---------------------------------------------------------------------------------------
# Semidefinite programs


class Worst(NamedTuple):
    """The worst case that a solver found, and the multipliers of its proof.

    Attributes:
        value: The dual value: a bound, up to the solver's tolerance.
        multipliers: The dual weights, by the names that `Term` has.
    """

    value: float
    multipliers: dict[str, float]


#: What may be asked of f. Where a class of PEPit's is *exact*, finitely many points that meet its inequalities belong
#: to a function of the class; elsewhere they need not, and the program's value is a bound and no more.
CLASSES = {
    "L-Lipschitz gradient": ("SmoothFunction", True),
    "strongly convex": ("SmoothStronglyConvexFunction", True),
    "PL": ("SmoothQuadraticLojasiewiczFunctionCheap", False),
    "PL, refined": ("SmoothQuadraticLojasiewiczFunctionExpensive", False),
}


def worst_change(low: float, high: float, size: float, smoothness: float) -> Worst:
    """The largest `f(x - eta P g) - f(x)` with `|g| = 1`, over all f with an L-Lipschitz gradient and all P.

    P has eigenvalues in `[low, high]`.

    Args:
        low: Smallest eigenvalue allowed.
        high: Largest.
        size: Step size eta.
        smoothness: L.

    Returns:
        The worst case.

    Raises:
        ValueError: If an argument does not fit.
    """
    return _solve("L-Lipschitz gradient", low, high, size, smoothness, 0.0, 0)


def worst_factor(
    kind: str, low: float, high: float, size: float, smoothness: float, mu: float, between: int = 0
) -> Worst:
    """The largest `f(x - eta P g) - f*` with `f(x) - f* = 1`, over all f of a class and all P.

    P has eigenvalues in `[low, high]`.

    Args:
        kind: A key of `CLASSES`.
        low: Smallest eigenvalue allowed.
        high: Largest.
        size: Step size eta.
        smoothness: L.
        mu: Constant of strong convexity or of the PL inequality.
        between: How often a further point is put between every two; it must obey the inequalities as well.

    Returns:
        The worst case.

    Raises:
        ValueError: If an argument does not fit.
    """
    return _solve(kind, low, high, size, smoothness, mu, between)


def _solve(kind: str, low: float, high: float, size: float, smoothness: float, mu: float, between: int) -> Worst:
    if kind not in CLASSES:
        raise ValueError(f"kind: expected one of {', '.join(CLASSES)}, got {kind!r}")
    low = checks.scalar("low", low, low=0, strict=True)
    high = checks.scalar("high", high, low=low)
    checks.finite(size=size, smoothness=smoothness, mu=mu, between=between)
    from PEPit import PEP, functions, operators

    problem = PEP()
    constants = {"L": smoothness} if kind == "L-Lipschitz gradient" else {"L": smoothness, "mu": mu}
    f = problem.declare_function(getattr(functions, CLASSES[kind][0]), **constants)
    x = problem.set_initial_point()
    g, value = f.oracle(x)
    if low == high:
        P, image = None, low * g
    else:
        P = problem.declare_function(operators.SymmetricLinearOperator, mu=low, L=high)
        image = P.gradient(g)
    y = x - size * image
    h, after = f.oracle(y)
    if kind == "L-Lipschitz gradient":
        problem.set_initial_condition(g**2 == 1)
        problem.set_performance_metric(after - value)
    else:
        least = f.stationary_point(return_gradient_and_function_value=True)[2]
        problem.set_initial_condition(value - least == 1)
        problem.set_performance_metric(after - least)
    points, pairs = [(x, g), (y, h)], set()
    for _ in range(between):
        # Where the quadratics of curvature L and -L meet that bound f from two of its points.
        for one, other in itertools.permutations(points, 2):
            if (one, other) not in pairs:
                pairs.add((one, other))
                z = (one[0] + other[0]) / 2 - (one[1] - other[1]) / (2 * smoothness)
                points.append((z, f.oracle(z)[0]))
    found = problem.solve(verbose=0, wrapper="cvxpy", solver="CLARABEL")
    return Worst(float(found), _multipliers(kind, f, P, mu))


def _multipliers(kind: str, f: Any, P: Any, mu: float) -> dict[str, float]:
    """The dual weights of the inequalities between x, y and the minimizer, by the names of the certificates' terms.

    PEPit divides the PL inequality by mu.
    """
    found = {} if P is None else {"spectrum of P": float(P.list_of_class_psd[0].eval_dual()[0, 0])}
    duals = {name: table.to_numpy() for name, table in f.get_class_constraints_duals().items()}
    for name, (table, row, column) in _WHERE[kind].items():
        found[name] = float(duals[table][row, column]) / (mu if table == "quadratic_lojasiewicz" else 1)
    return found


#: Where PEPit keeps the weight of an inequality. Its points are x, y and the minimizer, in this order.
_WHERE: dict[str, dict[str, tuple[str, int, int]]] = {
    "L-Lipschitz gradient": {"L-Lipschitz gradient": ("smoothness", 0, 1)},
    "strongly convex": {
        "strong convexity, start to end": ("smoothness_strong_convexity", 0, 1),
        "strong convexity, minimizer to start": ("smoothness_strong_convexity", 2, 0),
        "strong convexity, minimizer to end": ("smoothness_strong_convexity", 2, 1),
    },
    "PL": {
        "L-Lipschitz gradient": ("smoothness", 0, 1),
        "PL inequality at the start": ("quadratic_lojasiewicz", 0, 0),
        "PL inequality at the end": ("quadratic_lojasiewicz", 1, 0),
    },
    "PL, refined": {},
}


#: The grid of the recorded programs: condition numbers of P, steps as shares of `2 / (L high)` (None: the best step),
#: and mu / L.
CONDITIONS = (1.0, 2.0, 4.0, 9.0, 30.0)
SHARES = (0.1, 0.25, 0.5, None, 0.75, 0.95)
RATIOS = (0.02, 0.1, 0.3, 0.5, 0.8)


def grid() -> list[dict[str, Any]]:
    """What is asked of the solver: the worst case of every class over the grid, and refinements for P = I."""
    rows: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        for share in SHARES:
            size = descent.best_step(1.0, condition, 1.0) if share is None else share * 2 / condition
            for kind in CLASSES:
                for ratio in (0.0,) if kind == "L-Lipschitz gradient" else RATIOS:
                    rows.append({"kind": kind, "condition": condition, "size": size, "ratio": ratio, "between": 0})
    for ratio, between in [(ratio, 1) for ratio in RATIOS] + [(0.1, 2)]:
        rows.append({"kind": "PL, refined", "condition": 1.0, "size": 1.0, "ratio": ratio, "between": between})
    return rows


def solved(row: dict[str, Any]) -> Worst:
    """The worst case of one row of the grid; L = 1 and the smallest eigenvalue of P is 1."""
    return _solve(row["kind"], 1.0, row["condition"], row["size"], 1.0, row["ratio"], row["between"])


def record(path: Any) -> None:
    """Solve the whole grid, which takes two minutes, and write it down, a row a line."""
    lines = [json.dumps(row | {"value": float(f"{solved(row).value:.9f}")}) for row in grid()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


#: The recorded grid.
RECORD = pathlib.Path(__file__).parents[1] / "book" / "results" / "certificates" / "grid.json"

if __name__ == "__main__":
    record(RECORD)
