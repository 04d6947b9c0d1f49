"""The oracle: FOP in NumPy, slow and obviously right, for every variant and order.

It contains no formula for a hypergradient. Only the forward step is written down: precondition,
then let the base optimizer move the parameters. The hypergradient is the derivative of that step
by the complex-step method (Squire and Trapp 1998): `Im f(x + ih) / h` with `h = 1e-30` is exact to
rounding, since nothing is subtracted. So the oracle and the closed forms of the other modules share
no line, and neither shares one with PyTorch.

Everything is a pure function of a frozen state; gradients are matrices `[m, n]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import scipy.linalg

from fop_theory import checks

Array = np.ndarray

#: Each form of the preconditioner: from its parameters `M` and a gradient `G: [m, n]` to `P G`.
FORMS: dict[str, Callable[[Array, Array], Array]] = {
    "dense": lambda M, G: M @ (M.T @ G),  # Eq. (2), M: [m, k]
    "low-rank": lambda M, G: G + M @ (M.T @ G),  # Eq. (23), M: [m, k]
    "square": lambda M, G: M @ (M @ G),  # "the product of a matrix M with itself", M: [m, m]
    "diagonal": lambda M, G: M**2 * G,  # diag(M M^T) with diagonal M: [m, 1]
    "pp-hd": lambda M, G: M * G,  # one rate a parameter, M: [m, n]
    "s-hd": lambda M, G: M * G,  # one rate a layer, M: [1, 1]
    "linear": lambda M, G: M @ G,  # P itself, M: [m, m]
    "online": lambda M, G: M @ G,  # P itself, symmetric, by its normalised gradient, M: [m, m]
    "exponential": lambda M, G: scipy.linalg.expm(M) @ G,  # the logarithm of P, M: [m, m] symmetric
}


class Moments(NamedTuple):
    """State of a base optimizer; `first` and `second` are zeros before the first step."""

    first: Array
    second: Array
    steps: int


class Optimizer(Protocol):
    """A base or hyper-optimizer: a pure function from state, direction and parameters to a change."""

    def update(self, state: Moments, p: Array, theta: Array, lr: float) -> tuple[Moments, Array]:
        """Return the next state and the change `u`; the parameters become `theta - u`."""
        ...


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum (Eqs. (5), (6)), Nesterov's too, as `torch.optim.SGD` defines them."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def update(self, state: Moments, p: Array, theta: Array, lr: float) -> tuple[Moments, Array]:
        """Return the next state and the change `lr v`; weight decay joins the preconditioned gradient."""
        p = p + self.weight_decay * theta
        velocity = self.momentum * state.first + p
        ahead = p + self.momentum * velocity if self.nesterov else velocity
        return Moments(velocity, state.second, state.steps + 1), lr * ahead


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015), with decoupled weight decay when `decoupled`, as torch defines them."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def update(self, state: Moments, p: Array, theta: Array, lr: float) -> tuple[Moments, Array]:
        """Return the next state and the change `lr m / (sqrt(v) + eps)`, both moments unbiased."""
        b1, b2 = self.betas
        decay = lr * self.weight_decay * theta if self.decoupled else 0.0
        p = p if self.decoupled else p + self.weight_decay * theta
        steps = state.steps + 1
        first = b1 * state.first + (1 - b1) * p
        second = b2 * state.second + (1 - b2) * p**2
        size = np.sqrt(second) / np.sqrt(1 - b2**steps) + self.eps
        return Moments(first, second, steps), decay + lr / (1 - b1**steps) * first / size


@dataclass(frozen=True)
class Settings:
    """What kind of FOP.

    Attributes:
        lr: Learning rate, the paper's epsilon, positive.
        hyper_lr: Hypergradient learning rate, the paper's rho, at least zero.
        form: A key of `FORMS`.
        normalize: Divide P by its Frobenius norm and multiply by sqrt(m), Eq. (11).
        through_norm: With `normalize`, differentiate through the norm; else treat it as a constant.
        order: `"paper"` steps, then updates M (Algorithm 1); `"m-first"` updates M, then steps.
        index: In the paper's order, differentiate at the M that made the last step (`"exact"`, M^(t-1))
            or at the present one (`"printed"`, M^(t), as Eq. (4) and Algorithm 1 print it).
        through: What the hypergradient differentiates. `"step"`: the last step of the base optimizer,
            exactly. `"plain"`: a plain gradient step whatever the base, as the paper does.
            `"velocity"`: momentum's whole sum, with M regarded as constant in time.
        base: Optimizer of the parameters.
        hyper: Optimizer of M.
    """

    lr: float
    hyper_lr: float = 0.0
    form: str = "dense"
    normalize: bool = False
    through_norm: bool = True
    order: Literal["paper", "m-first"] = "paper"
    index: Literal["exact", "printed"] = "printed"
    through: Literal["step", "plain", "velocity"] = "plain"
    base: Optimizer = field(default_factory=SGD)
    hyper: Optimizer = field(default_factory=SGD)

    def __post_init__(self) -> None:
        checks.scalar("lr", self.lr, low=0, strict=True)
        checks.scalar("hyper_lr", self.hyper_lr, low=0)
        for name, allowed in (
            ("form", tuple(FORMS)),
            ("order", ("paper", "m-first")),
            ("index", ("exact", "printed")),
            ("through", ("step", "plain", "velocity")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.normalize and self.form not in ("dense", "low-rank", "square"):
            raise ValueError(f"normalize: expected a matrix form (dense, low-rank, square), got form {self.form!r}")
        if self.form in ("online", "exponential") and self.through == "step":
            raise ValueError(f"through: 'step' is not for the form {self.form!r}, which learns from gradients alone")
        if self.through == "velocity" and not isinstance(self.base, SGD):
            raise ValueError(f"through: 'velocity' needs SGD as the base, got {self.base!r}")


class LastStep(NamedTuple):
    """What the hypergradient needs of the step before: where it started, what it used."""

    theta: Array
    grad: Array
    M: Array
    moments: Moments
    lr: float


@dataclass(frozen=True)
class State:
    """FOP between two steps: `M`, both optimizers' moments, the last step, the raw momentum."""

    M: Array
    base: Moments
    hyper: Moments
    raw: Array
    last: LastStep | None = None


def initial_state(theta: Any, M: Any) -> State:
    """State before the first step.

    Args:
        theta: Parameters `[m, n]`.
        M: The preconditioner's first parameters; their shape depends on the form.

    Raises:
        ValueError: If one of them is not a finite matrix.
    """
    theta, M = checks.matrix("theta", theta), checks.matrix("M", M)
    zeros = np.zeros_like(theta)
    nothing = np.zeros_like(M)
    return State(M, Moments(zeros, zeros, 0), Moments(nothing, nothing, 0), zeros)


def precondition(M: Array, G: Array, settings: Settings, constant_norm_at: Array | None = None) -> Array:
    """`P G` for the settings' form; with `normalize`, `sqrt(m) P G / ||P||_F` (Eq. (11)).

    Args:
        M: Parameters of the preconditioner.
        G: Gradient `[m, n]`.
        settings: Form and normalisation.
        constant_norm_at: Take the norm from these parameters instead of `M`.
    """
    apply = FORMS[settings.form]
    product = apply(M, G)
    if not settings.normalize:
        return product
    P = apply(M if constant_norm_at is None else constant_norm_at, np.eye(G.shape[0], dtype=G.dtype))
    # Not np.linalg.norm: the square root of a sum of squares stays analytic for the complex step.
    return np.sqrt(G.shape[0]) * product / np.sqrt(np.sum(P**2))


def complex_step_gradient(function: Callable[[Array], Any], X: Array, size: float = 1e-30) -> Array:
    """Gradient of an analytic scalar function of a matrix, entry by entry, exact to rounding.

    Args:
        function: From a complex matrix `[m, n]` to a number.
        X: Where, `[m, n]`.
        size: The imaginary step, far below rounding.
    """
    gradient = np.zeros(X.shape)
    for entry in np.ndindex(X.shape):
        shifted = X.astype(complex)
        shifted[entry] += 1j * size
        gradient[entry] = np.imag(function(shifted)) / size
    return gradient


def oracle_hypergradient(G: Array, last: LastStep, at: Array, raw: Array, settings: Settings) -> Array:
    """Derivative by `M` of `<G, theta_t(M)>`, where `theta_t(M)` is the last step taken again with M.

    Args:
        G: Gradient at the parameters that the last step reached, `[m, n]`.
        last: The last step.
        at: Where to differentiate: `last.M`, or the present M for the printed index.
        raw: Momentum of the raw gradients at the last step, `[m, n]`; used by `through="velocity"`.
        settings: What is differentiated.
    """
    if settings.form in ("online", "exponential"):
        # A gradient step on P, or its mirror step: the derivative by a symmetric P, per squared gradient.
        P = at if settings.form == "online" else scipy.linalg.expm(at)
        by_P = oracle_hypergradient(G, last, P, raw, replace(settings, form="linear"))
        seen = np.linalg.norm(raw if settings.through == "velocity" else last.grad)
        measure = seen if settings.form == "online" else max(np.linalg.norm(G), seen)
        return (by_P + by_P.T) / 2 / (last.lr * seen * measure or 1.0)

    def reached(M: Array) -> Any:
        norm_at = None if settings.through_norm else at
        if settings.through == "velocity":
            return np.sum(G * (last.theta - last.lr * precondition(M, raw, settings, norm_at)))
        p = precondition(M, last.grad, settings, norm_at)
        base = SGD() if settings.through == "plain" else settings.base
        _, change = base.update(last.moments, p, last.theta, last.lr)
        return np.sum(G * (last.theta - change))

    return complex_step_gradient(reached, at)


def step(state: State, theta: Any, grad: Any, settings: Settings, lr: float | None = None) -> tuple[State, Array]:
    """One step of FOP.

    Args:
        state: State before the step.
        theta: Parameters `[m, n]`.
        grad: Gradient of the loss at `theta`, `[m, n]`.
        settings: What kind of FOP.
        lr: Learning rate of this step, when a schedule overrules the settings'.

    Returns:
        The state after the step and the next parameters.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    grad = checks.matrix("grad", grad, shape=theta.shape)
    lr = settings.lr if lr is None else checks.scalar("lr", lr, low=0, strict=True)
    learned, hyper = state.M, state.hyper
    if state.last is not None and settings.hyper_lr > 0:
        exact = settings.index == "exact" or settings.order == "m-first"
        at = state.last.M if exact else state.M
        slope = oracle_hypergradient(grad, state.last, at, state.raw, settings)
        hyper, change = settings.hyper.update(state.hyper, slope, state.M, settings.hyper_lr)
        learned = state.M - change
    used = learned if settings.order == "m-first" else state.M
    moments, change = settings.base.update(state.base, precondition(used, grad, settings), theta, lr)
    momentum = settings.base.momentum if isinstance(settings.base, SGD) else 0.0
    last = LastStep(theta, grad, used, state.base, lr)
    after = State(learned, moments, hyper, momentum * state.raw + grad, last)
    return after, theta - change


def run(
    gradient: Callable[[Array], Any], theta: Any, M: Any, settings: Settings, steps: int
) -> tuple[list[Array], list[Array]]:
    """Run FOP and return the parameters and the M's, each a list of `steps + 1`, the first included.

    Args:
        gradient: From parameters `[m, n]` to the gradient `[m, n]`.
        theta: First parameters `[m, n]`.
        M: First parameters of the preconditioner.
        settings: What kind of FOP.
        steps: Number of steps, at least zero.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    checks.scalar("steps", steps, low=0)
    theta = checks.matrix("theta", theta)
    state = initial_state(theta, M)
    thetas, factors = [theta], [state.M]
    for _ in range(steps):
        state, theta = step(state, theta, gradient(theta), settings)
        thetas.append(theta)
        factors.append(state.M)
    return thetas, factors
