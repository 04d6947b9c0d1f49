"""Figure 4: which runs, and how one is trained.

Appendix A.5 gives the limit of 2000 steps, the network, PPO-Clip after OpenAI Baselines, full-rank FOP on all layers,
learning rates and the minibatch. "3-layer" with a "hidden size" leaves open how many hidden layers there are: two here,
the 24-40-40-4 of the walker's controllers in the authors' other work of that year (POET), with the value's own layer
on the second. All else is a choice, see `Config`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

# Not "from fop_torch.studies": a study that is added there would change the digest of this one's code.
import fop_torch.studies.vision as vision
from fop_torch import FOP
from fop_torch.results import Record, run_key
from fop_torch.studies.mnist.train import Lengthen
from fop_torch.studies.study import Study
from fop_torch.training import Session

if TYPE_CHECKING:
    from fop_torch.studies.bipedal.ppo import Episode, Lean
    from fop_torch.studies.bipedal.walker import Walker

FLAT, HARDCORE = "BipedalWalker-v3", "BipedalWalkerHardcore-v3"
#: The methods, each with its learning rate in the paper; those that the paper lacks have that of their kind. "matched":
#: momentum with steps as long as FOP's, layer by layer; "frozen": FOP with a random M that never learns.
METHODS = {"FOP": 3e-4, "momentum": 3.5e-4, "Adam": 3e-4, "S-HD": 3e-4, "matched": 3e-4, "frozen": 3e-4}
#: Methods with a preconditioner.
LEARNING = ("FOP", "S-HD", "frozen")
#: The learning rates of the search: the paper's range is the first three; it goes on where plain SGD needs more.
LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
#: Adam's search ends earlier: its steps do not shrink with the gradient.
ADAM_LRS = LRS[:5]
#: Where the paper searched: these rates with these minibatches, for these methods.
PAPER_LRS, BATCHES, SEARCHED = LRS[:3], (8, 32, 64), ("FOP", "momentum", "Adam")
#: What the paper does not give for this task: FOP's rate of M below the 1e-4 of its other experiments.
HYPER_LRS = (1e-5, 1e-6)
#: Layers with a weight: two hidden ones, the actions', the value's.
LAYERS = 4
#: Environment steps of a PPO step, and passes over them: the defaults of Baselines' `ppo2.learn` for what is not MuJoCo
#: or Atari, as the walker. 2048 is also its MuJoCo setting and Stable-Baselines3's; passes are 10 in these two.
STEPS, EPOCHS = 2048, 4
#: PPO steps of a run of each profile: flat, hardcore and the search.
LENGTHS = {"laptop": (600, 300, 150), "paper": (5_000, 7_000, 600)}
#: Seeds of each profile: flat, hardcore and the search, whose first is `SEARCH_SEED`.
SEEDS = {"laptop": (5, 3, 2), "paper": (10, 5, 3)}
SEARCH_SEED = 100


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    A PPO step, the unit of Figure 4's axis, is taken to be one round of Baselines' loop: `STEPS` steps of the
    environment, then `epochs` passes over them. Observations and rewards are as the environment gives them: Baselines'
    runner normalises for MuJoCo alone. The rest is Baselines' and Stable-Baselines3's common default: clip 0.2, lambda
    0.95, gamma 0.99, value coefficient 0.5, no entropy bonus, gradients clipped to a norm of 0.5 before the optimizer,
    and so FOP, sees them, orthogonal first weights, log deviations from 0. The value is not clipped: Baselines clips
    its change to 0.2, which rewards as large as these would hold up.

    Attributes:
        method: A name of `METHODS`.
        seed: Of the first weights, the episodes, the noise and M; the same for all methods, so that runs are paired.
        terrain: `FLAT` or `HARDCORE`.
        lr: Learning rate.
        hyper_lr: Of Adam on M; open in the paper, so first its 1e-4 of CIFAR-10, then the search's, see `tuned`.
        form: Of FOP's P. `"dense"`, M M^T from I, is Section 2's; `"low_rank"`, I + M M^T, is Appendix A.4's for large
            layers, which these are not, taken at full rank.
        momentum: Of SGD; A.5 doesn't give it, 0.9 as elsewhere in the paper.
        batch: Environment steps of a minibatch.
        epochs: Passes.
        landscape: Seed of the terrain's shape, one for all runs: "the landscape remains fixed".
        iterations: Steps of the optimizer; see `updates`.
        steps: Environment steps of a PPO step.
        tested: Episodes of each evaluation.
        gains: For `"matched"`: the key of the run whose gains are repeated.
    """

    method: str
    seed: int
    terrain: str = FLAT
    lr: float = 3e-4
    hyper_lr: float = 1e-4
    form: str = "dense"
    momentum: float = 0.9
    batch: int = 32
    epochs: int = EPOCHS
    landscape: int = 0
    iterations: int = 1
    steps: int = STEPS
    tested: int = 2
    gains: str = ""

    @property
    def label(self) -> str:
        """Terrain, method and what differs from the defaults, then the seed."""
        said = ["hardcore" if self.terrain == HARDCORE else "flat", self.method.lower(), f"lr{self.lr:g}"]
        if self.batch != Config.batch:
            said.append(f"b{self.batch}")
        if self.hyper_lr != Config.hyper_lr:
            said.append(f"rho{self.hyper_lr:g}")
        if self.form != Config.form:
            said.append(self.form.replace("_", "-"))
        return "-".join([*said, f"n{self.iterations}", f"s{self.seed}"])

    @property
    def passes(self) -> int:
        """Steps of the optimizer in a PPO step."""
        return self.epochs * -(-self.steps // self.batch)

    @property
    def updates(self) -> int:
        """PPO steps."""
        return self.iterations // self.passes


# ---------------------------------------------------------------------------------------
# Which runs


def lasting(config: Config, updates: int) -> Config:
    """The same run with so many PPO steps."""
    return replace(config, iterations=updates * config.passes)


def runs(profile: str, records: Sequence[Record] = ()) -> list[Config]:
    """The runs of a profile, as far as they can be named; see `Study.runs`.

    In this order, seed by seed: the paper's settings on the flat terrain, the search, hardcore; then, when the search
    is recorded, what it found on both; last the controls that follow recorded runs of FOP at the paper's settings.
    """
    if profile == "smoke":
        base = lasting(Config("FOP", 0, steps=1024, tested=1), 4)
        found = [replace(base, method=method, lr=lr) for method, lr in METHODS.items() if method != "matched"]
        return found + _matched(found, records)
    flat, hardcore = (
        [
            replace(lasting(Config(method, seed, terrain), length), lr=lr)
            for seed in range(seeds)
            for method, lr in METHODS.items()
            if method != "matched"
        ]
        for terrain, length, seeds in zip((FLAT, HARDCORE), LENGTHS[profile], SEEDS[profile], strict=False)
    )
    found = flat + search(profile) + hardcore + tuned(profile, records)
    printed = [c for c in found if c.seed < SEARCH_SEED and (c.lr, c.batch) == (METHODS[c.method], Config.batch)]
    return found + _matched(printed, records)


def _matched(followed: Sequence[Config], records: Sequence[Record]) -> list[Config]:
    """The control of each FOP run among these that is recorded and can be followed."""
    known = {record.key: record for record in records}
    keys = {config: run_key(STUDY.name, config) for config in followed if config.method == "FOP"}
    return [
        replace(config, method="matched", gains=key)
        for config, key in keys.items()
        if key in known and can_be_followed(known[key])
    ]


def can_be_followed(record: Record) -> bool:
    """Has a run gains to repeat, to its end and in every layer?"""
    rows = record.metrics
    parts = {str(part) for part in range(1, LAYERS + 1)}
    return record.status == "finished" and set(rows["part"][rows["name"] == "gain"]) == parts


def search(profile: str) -> list[Config]:
    """The paper's search, rates and minibatches, and rates far beyond: on the flat terrain, with seeds of its own."""
    found = []
    for seed in range(SEARCH_SEED, SEARCH_SEED + SEEDS[profile][2]):
        base = Config("FOP", seed)
        each = [replace(base, method=method, lr=lr) for method in ("momentum", "FOP", "S-HD") for lr in LRS]
        each += [replace(base, method="Adam", lr=lr) for lr in ADAM_LRS]
        each += [replace(base, hyper_lr=hyper_lr, lr=lr) for hyper_lr in HYPER_LRS for lr in LRS]
        others = [(lr, batch) for batch in BATCHES for lr in PAPER_LRS if batch != base.batch]
        each += [replace(base, method=method, lr=lr, batch=batch) for method in SEARCHED for lr, batch in others]
        each += [replace(base, hyper_lr=HYPER_LRS[-1], lr=lr, batch=batch) for lr, batch in others]
        each += [replace(base, form="low_rank")]
        found += [lasting(config, LENGTHS[profile][2]) for config in each]
    return found


def scores(records: Sequence[Record], profile: str, method: str) -> dict[tuple[float, int, float], list[float]]:
    """The late return of each seed, by learning rate, minibatch and rate of M, of a method's runs of the search."""
    wanted = {run_key(STUDY.name, c): c for c in search(profile) if c.method == method and c.form == Config.form}
    found: dict[tuple[float, int, float], list[float]] = {}
    for record in records:
        if record.key in wanted:
            c = wanted[record.key]
            found.setdefault((c.lr, c.batch, c.hyper_lr), []).append(late_return(record))
    return found


def best(
    records: Sequence[Record], profile: str, method: str, *, printed: bool = False
) -> tuple[float, int, float] | None:
    """Learning rate, minibatch, rate of M with the best mean of `scores`; None until all runs are there.

    Args:
        records: The runs.
        profile: Their profile.
        method: Which one's.
        printed: Among those with the paper's learning rate and minibatch, which leaves the rate of M.
    """

    def eligible(lr: float, batch: int) -> bool:
        return not printed or (lr, batch) == (METHODS[method], Config.batch)

    found = {each: v for each, v in scores(records, profile, method).items() if eligible(*each[:2])}
    wanted = [c for c in search(profile) if c.method == method and c.form == Config.form and eligible(c.lr, c.batch)]
    if not wanted or sum(map(len, found.values())) < len(wanted):
        return None
    return max(found, key=lambda each: (float(np.mean(found[each])), -each[0], each[1], -each[2]))


def late_return(record: Record) -> float:
    """Mean return of the training episodes that ended in the last quarter of a run: NaN if none did.

    That of a fall if the run diverged.
    """
    from fop_torch.studies.bipedal.walker import FALL

    if record.status == "diverged":
        return FALL
    means, counts = record.curve("return"), record.curve("episodes")
    late = means.index[means.index > 0.75 * record.config["iterations"]]
    return float(np.average(means[late], weights=counts[late])) if len(late) else np.nan


def tuned(profile: str, records: Sequence[Record]) -> list[Config]:
    """What the search found and is not run before: Figure 4's methods at their own best; FOP at the paper's settings.

    The paper leaves FOP's rate of M open: with its learning rate and minibatch goes the best one of the search.
    """
    chosen = [(method, best(records, profile, method)) for method in SEARCHED]
    chosen.insert(0, ("FOP", best(records, profile, "FOP", printed=True)))
    found = [
        lasting(Config(method, seed, terrain, lr=these[0], batch=these[1], hyper_lr=these[2]), length)
        for terrain, length, seeds in zip((FLAT, HARDCORE), LENGTHS[profile], SEEDS[profile], strict=False)
        for seed in range(seeds)
        for method, these in chosen
        if these is not None and these != (METHODS[method], Config.batch, Config.hyper_lr)
    ]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------------------------
# One run


def optimizer(parameters: Iterable[Tensor], lr: float, *, config: Config) -> Optimizer:
    """What Stable-Baselines3 takes as its `optimizer_class`: a preconditioner for each weight, none for vectors.

    Args:
        parameters: The policy's.
        lr: Learning rate.
        config: Settings of the run.

    Raises:
        ValueError: If the method is unknown.
    """
    if config.method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {config.method!r}")
    if config.method == "Adam":
        return Adam(parameters, lr=lr, eps=1e-5, fused=True)  # eps: Baselines' and Stable-Baselines3's
    if config.method not in LEARNING:
        return SGD(parameters, lr=lr, momentum=config.momentum, fused=True)
    every = list(parameters)
    matrices, vectors = [p for p in every if p.dim() > 1], [p for p in every if p.dim() < 2]
    form = "s-hd" if config.method == "S-HD" else config.form
    if form == "low_rank":  # at full rank, which differs from layer to layer
        groups = [{"preconditioner": form, "params": [p], "rank": p.shape[1]} for p in matrices]
    else:
        groups = [{"preconditioner": form, "params": matrices}]
    groups.append({"preconditioner": "none", "params": vectors})
    hyper_lr = 0.0 if config.method == "frozen" else config.hyper_lr
    # "ignore": a step that breaks counts as one, as for the other methods.
    found = FOP(
        groups, lr=lr, momentum=config.momentum, fused=True, hyper=Adam, hyper_lr=hyper_lr, nonfinite="ignore",
        seed=config.seed,
    )  # fmt: skip
    if config.method == "frozen":
        for place, p in enumerate(matrices):
            found.state[p]["M"].copy_(vision.random_factor(p.shape[1], 1_000 * config.seed + place))
    return found


class Outputs(nn.Module):
    """The network as a function, for the count and the timing of a step: actions and value `[n, 5]`."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Tensor) -> Tensor:
        """`[n, 24]` to `[n, 5]`."""
        return self.policy.outputs(observations)


def setup(config: Config, device: str) -> tuple[nn.Module, Optimizer, tuple[int, ...], tuple[int, ...]]:
    """See `Study.setup`. A step is one of the optimizer; the environment's are not in it."""
    from gymnasium.spaces import Box

    from fop_torch.studies.bipedal.ppo import Policy, policy_options

    torch.manual_seed(config.seed)
    seen, done = Box(-np.inf, np.inf, (24,), np.float32), Box(-1, 1, (4,), np.float32)
    with torch.device(device):
        policy = Policy(seen, done, lambda _: config.lr, **policy_options(partial(optimizer, config=config)))
    return Outputs(policy), policy.optimizer, (config.batch, 24), (config.batch,)


def build(config: Config) -> tuple[Lean, Walker]:
    """PPO and the walker of a run."""
    from fop_torch.studies.bipedal.ppo import Lean
    from fop_torch.studies.bipedal.walker import Walker

    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002 (the library's own source of minibatches)
    walker = Walker(config.terrain, config.seed, config.landscape)
    make = partial(optimizer, config=config)
    ppo = Lean(
        walker, make, learning_rate=config.lr, n_steps=config.steps, batch_size=config.batch, n_epochs=config.epochs
    )
    return ppo, walker


class Watch:
    """Follows the optimizer's steps: how they turn, how FOP's preconditioners lengthen and turn gradients.

    Args:
        ppo: What is trained.
        session: Where to log.
        every: Optimizer's steps between two entries; their numbers are means over the steps between.
    """

    #: Steps between two looks at FOP's preconditioners.
    LOOK = 16

    def __init__(self, ppo: Lean, session: Session, every: int) -> None:
        from fop_torch.studies.bipedal.ppo import layers

        self._ppo, self._session, self._every = ppo, session, every
        sizes = np.array([p.numel() for p in ppo.policy.parameters()])
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        parameters = list(ppo.policy.parameters())
        self._places = [next(i for i, p in enumerate(parameters) if p is each.weight) for each in layers(ppo.policy)]
        self.vectors = {name: np.zeros_like(ppo.flat) for name in ("update", "grad")}
        self.before = ppo.flat.copy()
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, step: int) -> None:
        """Account for step 1, 2, 3, …."""
        ppo = self._ppo
        update = ppo.flat - self.before
        for name, vector in (("update", update), ("grad", ppo.flat_grad)):
            last = self.vectors[name]
            size = self._inner(vector, vector)
            inner = self._inner(vector, last) / np.sqrt(np.maximum(size * self._inner(last, last), 1e-30))
            if step > 1:
                self._add(f"{name}_cosine", inner)
            self._add(f"{name}_norm", np.sqrt(size))
            last[:] = vector
        self.before[:] = ppo.flat
        if step % self.LOOK == 0 and isinstance(ppo.policy.optimizer, FOP):
            found = list(ppo.policy.optimizer.preconditioners().values())
            self._add("gain", np.log(np.array([each.gain for each in found])))
            self._add("angle", np.array([each.angle for each in found]))
        if step % self._every == 0:
            self._tell(step)

    def _inner(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Inner product for each layer's weight."""
        return np.add.reduceat(a * b, self._starts)[self._places]

    def _add(self, name: str, values: np.ndarray) -> None:
        self.sums[name] = self.sums.get(name, 0) + values.astype(np.float64)
        self.counts[name] = self.counts.get(name, 0) + 1

    def _tell(self, step: int) -> None:
        for name, total in self.sums.items():
            means = total / self.counts[name]
            # Gains multiply: their mean is the geometric one.
            for part, value in enumerate(np.exp(means) if name == "gain" else means, 1):
                self._session.log(step, {name: float(f"{value:.5g}")}, str(part))
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"vectors": self.vectors, "before": self.before, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.vectors, self.before = state["vectors"], state["before"]
        self.sums, self.counts = state["sums"], state["counts"]


class Progress:
    """What PPO itself goes on from, as a part of a checkpoint.

    Args:
        ppo: What is trained.
    """

    def __init__(self, ppo: Lean) -> None:
        self._ppo = ppo

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"steps": self._ppo.steps, "num_timesteps": self._ppo.num_timesteps, "summed": self._ppo.summed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        for name, value in state.items():
            setattr(self._ppo, name, value)


def evaluated(config: Config) -> list[int]:
    """PPO steps, 0 and the last among them, after which the policy is evaluated: about 40 of a run and at most a tenth.

    That is seldom, for a walker that stands still takes all its time.
    """
    return [*range(0, config.updates, max(10, config.updates // 40)), config.updates]


def evaluate(ppo: Lean, config: Config) -> dict[str, float]:
    """The present policy without noise, on episodes of its own, with the same starts each time: see `told`."""
    from fop_torch.studies.bipedal.ppo import Episode
    from fop_torch.studies.bipedal.walker import Walker

    walker = Walker(config.terrain, 1_000_003 + config.seed, config.landscape)
    episodes = []
    for _ in range(config.tested):
        observation, _ = walker.reset()
        gained, over = 0.0, False
        while not over:
            observation, reward, ended, late, _ = walker.step(ppo.act(observation))
            gained, over = gained + reward, ended or late
        episodes.append(Episode(gained, walker.steps, walker.share, walker.game_over))
    return {f"test_{name}": value for name, value in told(episodes).items()}


def told(episodes: Sequence[Episode]) -> dict[str, float]:
    """How many episodes there were; and if any, their mean return, steps, share of the way, and how many fell."""
    found = {"episodes": float(len(episodes))}
    if episodes:
        gained, steps, share, fell = np.array(episodes).T
        found |= {"return": gained.mean(), "steps": steps.mean(), "share": share.mean(), "falls": fell.sum()}
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def train(config: Config, session: Session, records: Sequence[Record]) -> None:
    """See `Study.train`.

    The curves count the optimizer's steps. Each PPO step records the episodes that ended in it, see `told`. A
    checkpoint is written between two PPO steps; in the middle of an episode it holds what was done in it, and the
    episode is played again. At the end the spectra of P are recorded, and but for the search the policy's parameters,
    one behind the other: what walks in a picture.
    """
    from fop_torch.studies.bipedal.ppo import layers
    from fop_torch.studies.bipedal.walker import digest

    source = f"gymnasium {metadata.version('gymnasium')}, Box2D {metadata.version('box2d')}"
    session.facts["data"] = {
        "name": config.terrain,
        "source": source,
        "digest": digest(config.terrain, config.landscape),
    }
    followed = next((record for record in records if record.key == config.gains), None)
    if config.gains and followed is None:
        raise ValueError(f"gains: expected the key of a recorded run, got {config.gains!r}, which is not recorded")
    ppo, walker = build(config)
    policy = ppo.policy
    # About 100 entries of the layers' curves a run, however long it is.
    per = config.passes
    watch = Watch(ppo, session, Watch.LOOK * max(1, min(per, config.iterations // 100) // Watch.LOOK))
    due = evaluated(config)
    ppo.after_step = watch
    if followed is not None:
        ppo.before_step = Lengthen([layer.weight for layer in layers(policy)], followed)
    parts = {
        "policy": policy, "optimizer": policy.optimizer, "walker": walker, "progress": Progress(ppo), "watch": watch,
    }  # fmt: skip
    done = session.resume(parts)
    if done == 0:
        walker.reset()
        watch.before = ppo.flat.copy()
        session.log(0, evaluate(ppo, config))
    while done < config.iterations:
        try:
            with np.errstate(all="ignore"):  # a run that breaks is told below
                ppo.collect()
                ppo.train()
                done = ppo.steps
                session.log(done, told(ppo.finished) | {"std": round(float(policy.log_std.detach().exp().mean()), 4)})
                if done // per in due:
                    session.log(done, evaluate(ppo, config) | {"seconds": round(session.seconds, 1)})
        except FloatingPointError:
            session.status, session.facts["diverged_at"] = "diverged", ppo.steps
            session.beat(config.iterations, config.iterations)
            return
        session.after_step(done, config.iterations, parts)
    session.facts["environment_steps"] = ppo.num_timesteps
    if isinstance(policy.optimizer, FOP):
        for part, found in enumerate(policy.optimizer.preconditioners().values(), 1):
            P = found.P if found.P.dim() == 2 else torch.diag(found.P)
            for name, values in (("eigenvalue", torch.linalg.eigvalsh(P.double())), ("diagonal", P.diagonal())):
                session.log(done, {f"{name} {i}": float(f"{value:.5g}") for i, value in enumerate(values)}, str(part))
    if config.seed < SEARCH_SEED:
        for value in ppo.flat:
            session.log(done, {"parameter": float(value)}, "policy")


STUDY = Study(
    name="bipedal",
    title="PPO on the bipedal walker, on two terrains",
    shows="Figure 4, Section 4.4, Appendix A.5",
    data=(),
    profiles={
        "smoke": "4 PPO steps of 1,024 steps of the environment, 1 seed, the flat terrain",
        "laptop": "{} and {} PPO steps instead of 5,000 and 7,000; {} and {} seeds instead of 10 and 5".format(
            *LENGTHS["laptop"][:2], *SEEDS["laptop"][:2]
        ),
        "paper": "nothing that is given; a PPO step is taken to be 2048 steps of the environment",
    },
    runs=runs,
    train=train,
    setup=setup,
    module=__name__,
)
