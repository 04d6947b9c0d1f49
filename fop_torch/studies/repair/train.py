"""The suite: six problems, the paper's FOP and its repairs over six decades, and peers that are tuned as much.

A run takes one problem and one method through all their settings and seeds: a setting takes seconds, and a record for
each of them would be thousands of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from fop_torch import FOP
from fop_torch.data import NAMES, load
from fop_torch.results import Record
from fop_torch.studies.repair import peers
from fop_torch.studies.study import Study
from fop_torch.training import Batches, Session

#: Options of the paper's FOP and of its repairs, and the middle of the six decades through which each one's rate goes:
#: fop_torch's default for Adam on M, one over a loss of about one for plain steps, a hundredth where it has no unit.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "paper": ({}, 1e-4),
    "bounded": ({"max_norm": 2.0}, 1e-4),
    "safe": ({"hyper": SGD, "safe": 0.5}, 1.0),
    "exponential": ({"preconditioner": "exponential", "hyper": SGD}, 1e-2),
    "budget": ({"preconditioner": "exponential", "hyper": SGD, "max_norm": 2.0}, 1e-2),
    "linear": ({"preconditioner": "linear", "hyper": SGD}, 1e-2),
    "linear-budget": ({"preconditioner": "linear", "hyper": SGD, "max_norm": 2.0}, 1e-2),
    "linear-null": ({"preconditioner": "linear", "hyper": SGD, "order": "m-first", "null_step": True}, 1e-2),
}
#: The same form at its rate of a hundredth, with budgets `1 + 10^-3` to `1 + 10^3`.
BUDGETS = "budgets"
DECADES = tuple(range(-3, 4))
PEERS = ("SGD", "momentum", "Adam", "L-BFGS", *peers.PEERS)
#: Methods that need a loss that is deterministic.
DETERMINISTIC = ("L-BFGS", "linear-null")
#: Shares of the base's tuned learning rate at which FOP runs: the best, and one that is too small.
SHARES = (1.0, 0.1)
#: A run has diverged when its loss is so many times the first one.
LOST = 1e3


class Problem(NamedTuple):
    """What is minimised.

    Attributes:
        steps: Of each setting, in the laptop profile.
        lr: Middle of the learning rates among which the base's is chosen.
        momentum: Of the base, FOP's too.
        full: Is the loss deterministic? Else batches are drawn and the learning rate falls linearly to zero.
        build: From a seed to the model; its float type is the problem's.
        data: Inputs and targets, or None.
        source: Where numbers that are not drawn come from; for images their name.
    """

    steps: int
    lr: float
    momentum: float
    full: bool
    build: Callable[[int], nn.Module]
    data: Callable[[bool], tuple[Tensor, Tensor] | None]
    source: str = ""


class Function(nn.Module):
    """A function of a row vector, as a network that takes no notice of its input."""

    def __init__(self, start: np.ndarray, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start, dtype=torch.float64).reshape(1, -1))
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        """`[1, 1]`."""
        return self.value(self.weight).reshape(1, 1)


def quadratic(seed: int) -> Function:
    """Twenty curvatures from 1 down to 1/1000 along drawn axes, from a drawn start."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    A = torch.tensor((axes * np.logspace(0, -3, 20)) @ axes.T)
    return Function(rng.standard_normal(20), lambda w: ((w @ A) * w).sum() / 2)


def rosenbrock(seed: int) -> Function:
    """From the usual start, moved a little."""
    start = np.array([-1.2, 1.0]) + 0.1 * np.random.default_rng(seed).standard_normal(2)
    return Function(start, lambda w: (1 - w[0, 0]) ** 2 + 100 * (w[0, 1] - w[0, 0] ** 2) ** 2)


def logistic(seed: int) -> Function:
    """Breast cancer data of scikit-learn, four fifths of them as drawn; logistic loss and a ridge of 1/1000."""
    x, y = load_breast_cancer(return_X_y=True)
    some = np.random.default_rng(seed).permutation(len(x))[: 4 * len(x) // 5]
    Z = torch.tensor((2 * y[some, None] - 1) * ((x - x.mean(0)) / x.std(0))[some])
    return Function(np.zeros(30), lambda w: nn.functional.softplus(-Z @ w[0]).mean() + 5e-4 * w.square().sum())


def _seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make()

    return build


def _digits(_: bool) -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)


def _images(name: str, count: int) -> Callable[[bool], tuple[Tensor, Tensor]]:
    def data(stand_in: bool) -> tuple[Tensor, Tensor]:
        x, y = (each[:count] for each in load(name, stand_in=stand_in).train)
        return (x.float() / 255 - 0.5) / 0.25, y

    return data


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


PROBLEMS: dict[str, Problem] = {
    "quadratic": Problem(200, 0.5, 0.0, True, quadratic, lambda _: None),
    "logistic": Problem(200, 3.0, 0.0, True, logistic, lambda _: None, "scikit-learn, breast cancer"),
    "Rosenbrock": Problem(400, 1e-3, 0.0, True, rosenbrock, lambda _: None),
    "digits": Problem(200, 3.0, 0.0, False, _seeded(lambda: nn.Linear(64, 10)), _digits, "scikit-learn, digits"),
    "MNIST": Problem(150, 0.03, 0.9, False, _seeded(_mlp), _images("mnist", 4000), "mnist"),
    "CIFAR-10": Problem(100, 0.01, 0.9, False, _seeded(_convolutional), _images("cifar10", 2000), "cifar10"),
}
BATCH = 64


@dataclass(frozen=True)
class Config:
    """A method on a problem: all its settings, all its seeds.

    Attributes:
        problem: Of `PROBLEMS`.
        method: Of `PEERS`, `KINDS` or `BUDGETS`.
        lr: The base's tuned learning rate, for FOP; a peer goes through a grid instead.
        seed: The first of them.
        seeds: How many.
        iterations: Steps of a setting.
        stand_in: May other images take the place of MNIST's or CIFAR-10's? The smoke profile alone.
    """

    problem: str
    method: str
    lr: float = 0.0
    seed: int = 0
    seeds: int = 3
    iterations: int = 100
    stand_in: bool = False

    @property
    def label(self) -> str:
        """Problem, method, steps."""
        return f"{self.problem.lower()}-{self.method.lower()}-n{self.iterations}-s{self.seeds}"


class Setting(NamedTuple):
    """One column of a method's sweep: what stands in the record as its part, before the seed."""

    lr: float
    rate: float = 0.0
    budget: float = 0.0

    def part(self, seed: int) -> str:
        """`lr rate budget seed`."""
        return f"{self.lr:.6g} {self.rate:.6g} {self.budget:.6g} {seed}"


def settings(config: Config) -> list[Setting]:
    """The sweep of a method: seven settings, for FOP at each share of the base's learning rate."""
    middle = PROBLEMS[config.problem].lr
    if config.method == "L-BFGS":
        return [Setting(1.0)]
    if config.method in PEERS:
        own = {"SGD": middle, "momentum": middle / (1 if PROBLEMS[config.problem].momentum else 10), "Adam": 0.01}
        middle = own[config.method] if config.method in own else peers.PEERS[config.method]
        return [Setting(middle * 10 ** (step / 2)) for step in DECADES]
    if config.method == BUDGETS:
        rate = KINDS["budget"][1]
        return [Setting(share * config.lr, rate, 1 + 10.0**step) for share in SHARES for step in DECADES]
    _, rate = KINDS[config.method]
    return [Setting(share * config.lr, rate * 10.0**step) for share in SHARES for step in DECADES]


def optimizer(model: nn.Module, config: Config, setting: Setting, seed: int) -> Optimizer | peers.Several:
    """The optimizer of one setting.

    Raises:
        ValueError: If the method is unknown.
    """
    momentum = PROBLEMS[config.problem].momentum
    if config.method == "SGD":
        return SGD(model.parameters(), setting.lr)
    if config.method == "momentum":
        return SGD(model.parameters(), setting.lr, momentum=0.9)
    if config.method == "Adam":
        return Adam(model.parameters(), setting.lr)
    if config.method == "L-BFGS":
        return LBFGS(model.parameters(), setting.lr, max_iter=1, max_eval=25, line_search_fn="strong_wolfe")
    if config.method in peers.PEERS:
        torch.manual_seed(seed)  # some of them draw as they go
        return peers.build(config.method, list(model.parameters()), setting.lr)
    if config.method == BUDGETS:
        options = {**KINDS["budget"][0], "max_norm": setting.budget}
    elif config.method in KINDS:
        options = KINDS[config.method][0]
    else:
        raise ValueError(f"method: expected one of {', '.join((*PEERS, *KINDS, BUDGETS))}, got {config.method!r}")
    # Its guard would leave out the steps on which a run without it breaks.
    own: dict[str, Any] = {"momentum": momentum, "hyper_lr": setting.rate, "seed": seed, "nonfinite": "ignore"}
    # foreach: torch's calls alone, so that the bits don't hang on a compiler.
    return FOP(model.parameters(), setting.lr, foreach=True, **own, **options)


def base(problem: str) -> str:
    """The peer that FOP is put around on a problem."""
    return "momentum" if PROBLEMS[problem].momentum else "SGD"


def methods(problem: str) -> list[str]:
    """All that are tried on a problem: peers, the paper's FOP and its repairs."""
    everything = (*PEERS, *KINDS, BUDGETS)
    return [each for each in everything if PROBLEMS[problem].full or each not in DETERMINISTIC]


def runs(profile: str, records: Sequence[Record] = ()) -> list[Config]:
    """The runs of a profile, as far as they can be named: FOP's need the base's tuned learning rate."""
    from fop_torch.studies.repair.summary import tuned

    found = []
    for name, problem in PROBLEMS.items():
        if profile == "smoke" and name not in ("quadratic", "digits"):
            continue
        each = Config(name, base(name), iterations=problem.steps)
        if profile == "smoke":
            each = replace(each, seeds=2, iterations=15, stand_in=True)
        own = [r for r in records if r.config["problem"] == name]
        known = [r for r in own if r.config["method"] == base(name) and r.config["iterations"] == each.iterations]
        some = methods(name)
        # What every build of the book runs needs no other package.
        tried = [each for each in some if each in PEERS and not (profile == "smoke" and each in peers.OUTSIDE)]
        found += [replace(each, method=peer) for peer in tried]
        if known:
            lr = tuned(known[0]).lr
            found += [replace(each, method=method, lr=lr) for method in some if method not in PEERS]
    return found


def train(config: Config, session: Session, records: Sequence[Record]) -> None:
    """See `Study.train`: curves of the whole loss at about twenty places, `loss` in the part of setting and seed.

    A curve that ends before the last step is that of a setting that diverged.
    """
    problem = PROBLEMS[config.problem]
    data = problem.data(config.stand_in)
    session.facts["data"] = source(config)
    if config.method in peers.OUTSIDE:
        session.facts["package"] = peers.version()
    sweep = [(setting, config.seed + i) for setting in settings(config) for i in range(config.seeds)]
    for number, (setting, seed) in enumerate(sweep):
        for step, value in descend(config, setting, seed, data):
            session.log(step, {"loss": value}, setting.part(seed))
        session.beat(number + 1, len(sweep))
    if max(step for step, *_ in session.rows) < config.iterations:  # no setting came to its end
        session.status = "diverged"


def source(config: Config) -> dict[str, str]:
    """Where a problem's numbers come from, as a record says it."""
    problem = PROBLEMS[config.problem]
    if problem.source in NAMES:
        images = load(problem.source, stand_in=config.stand_in)
        return {"name": images.name, "source": images.source, "digest": images.digest}
    if not problem.source:
        return {"name": config.problem, "source": "drawn", "digest": "by its seed"}
    arrays = (load_digits if "digits" in problem.source else load_breast_cancer)(return_X_y=True)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)).hexdigest()[:16]
    return {"name": problem.source.split(", ")[1], "source": "scikit-learn", "digest": digest}


def descend(config: Config, setting: Setting, seed: int, data: tuple[Tensor, Tensor] | None) -> list[tuple[int, float]]:
    """Train one setting with one seed: steps done and the whole loss there, up to where it was lost."""
    problem = PROBLEMS[config.problem]
    model = problem.build(seed)
    stepper = optimizer(model, config, setting, seed)
    lrs = [group["lr"] for group in stepper.param_groups]
    batches = Batches(len(data[0]), BATCH, seed) if data else None
    nothing = torch.zeros(1, 1)

    def loss(step: int | None) -> Tensor:
        if data is None or batches is None:
            return model(nothing).mean()
        chosen = slice(None) if step is None else batches[step]
        return nn.functional.cross_entropy(model(data[0][chosen]), data[1][chosen])

    def whole() -> float:
        with torch.no_grad():
            return float(loss(None))

    found = [(0, whole())]
    every = max(1, config.iterations // 20)
    for step in range(config.iterations):
        for group, lr in zip(stepper.param_groups, lrs, strict=True):
            group["lr"] = lr * (1.0 if problem.full else 1 - step / config.iterations)

        def closure(step: int = step) -> Tensor:
            stepper.zero_grad()
            value = loss(step)
            value.backward()
            return value

        try:
            stepper.step(closure)  # type: ignore[arg-type]
        except torch.linalg.LinAlgError:  # a statistic of Shampoo's is no longer finite
            return found
        if (step + 1) % every == 0 or step + 1 == config.iterations:
            value = whole()
            if not value <= LOST * max(1.0, found[0][1]):
                return found
            found.append((step + 1, max(value, 1e-300)))
    return found


STUDY = Study(
    name="repair",
    title="The method repaired: does it do harm?",
    shows="nothing of the paper: our repairs of its method, beside the paper's own update",
    data=("mnist", "cifar10"),
    profiles={
        "smoke": "two of six problems, 15 steps, 2 seeds",
        "laptop": "short runs: 100 to 400 steps, 3 seeds, 4,000 images of MNIST and 2,000 of CIFAR-10, small networks",
        "paper": "as laptop: the paper has no such suite",
    },
    runs=runs,
    train=train,
    setup=None,
    module=__name__,
)
