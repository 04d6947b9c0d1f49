"""What the studies on images share: the methods of Figure 2 with their controls, and one training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from fop_torch import FOP
from fop_torch.data import Images
from fop_torch.preconditioners import FORMS
from fop_torch.results import Record
from fop_torch.studies.mnist.train import Lengthen
from fop_torch.training import Batches, Session, fit

#: Every method by the name that records and figures give it, with what makes it of FOP's options.
#: Figure 2's five: momentum; a learned rate a layer; one a parameter; FOP with P of fixed norm; FOP.
#: Controls: steps as long as FOP's along the plain gradient; a random M that never learns; the gradient's mean over
#: the kernel taken out (gradient centralisation, Yong et al. 2020); FOP that climbs its hypergradient.
#: For what FOP learns: plain gradient steps on M; the hypergradient through momentum's whole sum; labels shuffled.
METHODS: dict[str, dict[str, Any]] = {
    "momentum": {},
    "S-HD": {"preconditioner": "s-hd"},
    "PP-HD": {"preconditioner": "pp-hd"},
    "FOP-norm": {"normalize": True},
    "FOP": {},
    "matched": {},
    "frozen": {"hyper_lr": 0.0},
    "centralised": {"hyper_lr": 0.0},
    "flipped": {"hyper_options": {"maximize": True}},
    "plain M": {"hyper": SGD},
    "velocity": {"through": "velocity"},
    "shuffled": {},
}
#: Methods without a preconditioner.
PLAIN = ("momentum", "matched")


@dataclass(frozen=True)
class VisionConfig:
    """What every study on images sets for a run.

    Attributes:
        method: A name of `METHODS`.
        seed: Of the first weights and the batches; the same for all methods, so that runs are paired.
        hyper_lr: Learning rate of the hyper-optimizer, Adam but for the method `"plain M"`.
        lr: Learning rate.
        momentum: Of SGD.
        weight_decay: Added to the step, after the preconditioner.
        batch: Images a step.
        iterations: Steps.
        drops: Steps at which the learning rate is divided by ten.
        gains: For `"matched"`: the key of the run whose gains are repeated.
        stand_in: May other images take the set's place? The smoke profile alone.
    """

    method: str
    seed: int
    hyper_lr: float = 1e-4
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 128
    iterations: int = 1
    drops: tuple[int, ...] = ()
    gains: str = ""
    stand_in: bool = False

    @property
    def label(self) -> str:
        """Method, what differs from the study's defaults, then the seed."""
        said = [self.method.lower().replace(" ", "-")]
        fields = type(self).__dataclass_fields__
        for name, short in (("hyper_lr", "rho"), ("lr", "lr"), ("momentum", "alpha"), ("width", "w")):
            value = getattr(self, name, None)
            if name in fields and value != fields[name].default:
                said.append(f"{short}{value:g}")
        return "-".join([*said, f"n{self.iterations}", f"s{self.seed}"])


def kernels(model: nn.Module) -> dict[str, Tensor]:
    """The weights that get a preconditioner, by name: convolutions' and linear layers'."""
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def optimizer(model: nn.Module, config: VisionConfig) -> Optimizer:
    """The optimizer of a run: a matrix for the positions of each kernel, one number for a linear layer, none else.

    A linear layer is a convolution of 1 x 1 here, as Figure 2 counts it.

    Raises:
        ValueError: If the method is unknown.
    """
    if config.method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {config.method!r}")
    base: dict[str, Any] = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    if config.method in PLAIN:
        return SGD(model.parameters(), lr=config.lr, foreach=True, **base)
    options = {"hyper_lr": config.hyper_lr, "preconditioner": "spatial", **METHODS[config.method]}
    normalize, form = options.pop("normalize", False), options.pop("preconditioner")
    weights = kernels(model)
    groups = []
    for name, p in model.named_parameters():
        kind = form if name in weights else "none"
        if kind == "spatial" and p.dim() == 2:
            kind = "scalar"
        groups.append({"params": [(name, p)], "preconditioner": kind, "normalize": normalize and kind == "spatial"})
    found = FOP(groups, lr=config.lr, foreach=True, seed=config.seed, **base, **options)
    if config.method in STARTS:
        for place, weight in enumerate(each for each in weights.values() if each.dim() > 2):
            M = found.state[weight]["M"]
            if len(M) > 1:
                M.copy_(STARTS[config.method](len(M), 1_000 * config.seed + place))
    return found


def random_factor(m: int, seed: int) -> Tensor:
    """A random M `[m, m]` whose `P = M M^T` is the identity in the mean."""
    return torch.randn(m, m, generator=torch.Generator().manual_seed(seed)) / m**0.5


def centralising_factor(m: int, seed: int = 0) -> Tensor:
    """`I - 1 1^T / m`: a projection, so that `M M^T = M`."""
    return torch.eye(m) - 1 / m


#: The first M of the methods that don't start at the identity.
STARTS: dict[str, Callable[[int, int], Tensor]] = {"frozen": random_factor, "centralised": centralising_factor}


def rate(config: VisionConfig, step: int) -> float:
    """The learning rate of step 0, 1, 2, …: divided by ten at each drop."""
    return config.lr / 10 ** sum(step >= drop for drop in config.drops)


class Correlations:
    """Sums, over the steps since they were last asked for, of what gradients of a kernel say about its positions.

    For gradients `G_t` as rows `[channels, k^2]`: `C = sum G_t^T G_t`, their spatial covariance, and
    `X = sum (G_t^T G_(t-1) + G_(t-1)^T G_t) / 2`, how successive ones agree: the driving force of FOP's M.

    Args:
        weights: The kernels.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = {part: p for part, p in enumerate(weights, 1) if p.dim() == 4 and p[0, 0].numel() > 1}
        self.before: list[Tensor] = []
        self.C = [torch.zeros(p[0, 0].numel(), p[0, 0].numel(), device=p.device) for p in self._weights.values()]
        self.X = [torch.zeros_like(C) for C in self.C]

    @torch.no_grad()
    def add(self) -> None:
        """Account for the present gradients."""
        here = [FORMS["spatial"].rows(p.grad).clone() for p in self._weights.values()]  # type: ignore[attr-defined]
        for i, G in enumerate(here):
            self.C[i] += _gram(G, G)
            if self.before:
                self.X[i] += _gram(G, self.before[i])
        self.before = here

    def take(self) -> dict[int, tuple[Tensor, Tensor]]:
        """`C` and the symmetric part of `X` of each kernel, by its place among the weights; the sums start anew."""
        found = {part: (C.clone(), (X + X.mT) / 2) for part, C, X in zip(self._weights, self.C, self.X, strict=True)}
        for sums in (*self.C, *self.X):
            sums.zero_()
        return found

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"before": self.before, "C": self.C, "X": self.X}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.before, self.C, self.X = state["before"], state["C"], state["X"]


def _gram(G: Tensor, H: Tensor) -> Tensor:
    """`G^T H` for rows `[n, m]` or, where kernels lie with their channels last, `[out, m, in]`."""
    return G.mT @ H if G.dim() == 2 else (G @ H.mT).sum(0)


def entries(name: str, matrix: Tensor) -> dict[str, float]:
    """The upper triangle of a symmetric matrix, as `"P 0 0"`, `"P 0 1"`, …, for a record's curves."""
    return {f"{name} {i} {j}": float(matrix[i, j]) for i in range(len(matrix)) for j in range(i, len(matrix))}


def shuffled(labels: Tensor) -> Tensor:
    """The labels in another order, always the same: nothing about an image can be learned from them."""
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(labels.device)]


def in_memory(
    images: Images, config: VisionConfig, session: Session, *, chance: bool = False
) -> tuple[Callable[[int], tuple[Tensor, Tensor]], Callable[[], Iterator[tuple[Tensor, Tensor]]]]:
    """Batches and test set from images that lie on the device as bytes.

    Numbers have mean 0 and deviation 1, channel by channel, over the first 10,000 training images.

    Args:
        images: The set.
        config: Settings of the run.
        session: The run; what the images are goes into its facts.
        chance: Shuffle the labels of the training images.

    Returns:
        The batch of step 0, 1, 2, …, and what goes once through the test set.
    """
    session.facts["data"] = {"name": images.name, "source": images.source, "digest": images.digest}
    (x, y), (x_test, y_test) = images.to(session.device).train, images.to(session.device).test
    if chance:
        y = shuffled(y)
    sample = x[:10_000].float()
    mean, deviation = sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True)
    batches = Batches(len(x), config.batch, config.seed, session.device)

    def numbers(some: Tensor) -> Tensor:
        return ((some.float() - mean) / deviation).contiguous(memory_format=torch.channels_last)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = session.share(batches[step])
        return numbers(x[chosen]), y[chosen]

    def tested() -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in zip(x_test.split(500), y_test.split(500), strict=True):
            yield numbers(inputs), targets

    return batch, tested


def train(
    config: VisionConfig, session: Session, records: Sequence[Record], model: nn.Module, stepper: Optimizer,
    batch: Callable[[int], tuple[Tensor, Tensor]], tested: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    *, tests: int, looks: int,
) -> None:  # fmt: skip
    """Train one run.

    Args:
        config: Its settings.
        session: See `Study.train`.
        records: Likewise.
        model: The network.
        stepper: Its optimizer; see `optimizer`.
        batch: Inputs and targets of step 0, 1, 2, ….
        tested: Goes once through the test set.
        tests: Steps between two measurements of the test set, of P and of the gradients' correlations.
        looks: Steps between two looks at what P does to a gradient; a divisor of `tests`.
    """
    # Channels last is what convolutions are fastest with, here as on a GPU.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = list(kernels(model).values())
    wrapped, setup = session.fabric.setup(model, stepper)
    followed = next((record for record in records if record.key == config.gains), None)
    if config.gains and followed is None:
        raise ValueError(f"gains: expected the key of a recorded run, got {config.gains!r}, which is not recorded")
    lengthen = Lengthen(weights, followed) if followed is not None else None
    sums = Correlations(weights)

    def before_step(step: int) -> None:
        for group in stepper.param_groups:
            group["lr"] = rate(config, step)
        sums.add()
        if lengthen is not None:
            lengthen(step)

    @torch.no_grad()
    def measure(step: int) -> None:
        whole = step % tests == 0 or step == config.iterations
        if whole:
            session.log(step, accuracy(wrapped, tested) | {"seconds": session.seconds})
        if step and isinstance(stepper, FOP):
            for part, found in enumerate(stepper.preconditioners().values(), 1):
                session.log(step, {"gain": found.gain, "angle": found.angle}, str(part))
                if whole and found.P.dim() == 2 and len(found.P) > 1 and config.method not in STARTS:
                    session.log(step, entries("P", found.P), str(part))
        if step and whole:
            for part, (C, X) in sums.take().items():
                session.log(step, entries("C", C) | entries("X", X), str(part))

    model.train()
    fit(
        session, wrapped, setup, batch, iterations=config.iterations,
        measure=measure, every=looks, before_step=before_step, parts={"sums": sums},
    )  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, tested: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> dict[str, float]:
    """Share of right answers in percent, and mean loss, on the test set; dropout and the like are off meanwhile."""
    model.eval()
    right, lost, count = 0.0, 0.0, 0
    for inputs, targets in tested():
        outputs = model(inputs)
        right += (outputs.argmax(1) == targets).sum().item()
        lost += nn.functional.cross_entropy(outputs.float(), targets, reduction="sum").item()
        count += len(targets)
    model.train()
    return {"test_accuracy": 100 * right / count, "test_loss": lost / count}
