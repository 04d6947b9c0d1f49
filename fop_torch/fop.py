"""FOP as a PyTorch optimizer: `FOP(model.parameters(), lr=0.05, momentum=0.9)`.

A step has two phases: first every hypergradient, from this gradient and the one before; then every update.
FOP owns two ordinary optimizers of torch: `base` moves the parameters and is fed the preconditioned gradient,
`hyper` moves the factors M and is fed the hypergradient. FOP's own state is M and the previous gradient.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fop_torch.assign import resolve
from fop_torch.guard import Snapshot, finite, total_sizes
from fop_torch.preconditioners import FORMS, Form, safe_factor

#: FOP's own entries of a parameter's state; the base's and the hyper-optimizer's stand in theirs.
OWN_STATE = ("M", "prev_grad", "prev_lr", "prev_M", "sensitivity")

#: FOP's own options: the defaults of every parameter group, beside the base optimizer's.
OPTIONS: dict[str, Any] = {
    "hyper_lr": 1e-4,
    "preconditioner": "auto",
    "rank": None,
    "normalize": False,
    "through_norm": True,
    "order": "paper",
    "index": "printed",
    "through": "plain",
    "scale": 0.01,
    "safe": None,
    "max_norm": None,
}
CHOICES = {
    "order": ("paper", "m-first"),
    "index": ("printed", "exact"),
    "through": ("plain", "step", "velocity"),
    "nonfinite": ("skip", "ignore"),
}


@dataclass(eq=False)
class Bucket:
    """Parameters of one group and form that take this step together; the lists are in the same order."""

    group: dict[str, Any]
    form: Form
    seen: bool  # is there a gradient of an earlier step?
    params: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    Ms: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)  # as autograd left them
    Gs: list[Tensor] = field(default_factory=list)  # in M's precision
    projected: Any = None
    slopes: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)

    def look_back(self) -> None:
        """Form the hypergradients, from this gradient, the one before and M as it is."""
        group, form = self.group, self.form
        paper = group["order"] == "paper"
        if paper:
            self.projected = form.project(self.Ms, self.Gs)
        if not self.seen or group["hyper_lr"] == 0:
            return
        at, Gs, projected = self.Ms, self.Gs, self.projected
        if paper and group["index"] == "exact":
            at, projected = [state["prev_M"] for state in self.states], None
        if group["through"] == "step" and "sensitivity" in self.states[0]:
            Gs = list(torch._foreach_mul(Gs, [state["sensitivity"] for state in self.states]))
            projected = None
        Hs = [state["prev_grad"].to(M.dtype) for state, M in zip(self.states, at, strict=True)]
        slopes = form.slopes(at, Gs, Hs, projected)
        if group["normalize"]:
            scales = form.scales(at)
            if group["through_norm"]:
                slopes = form.norm_slopes(at, Gs, Hs, slopes, scales)
            else:
                slopes = list(torch._foreach_mul(slopes, scales))
        lrs = [state["prev_lr"] for state in self.states]
        if group["safe"] is not None:
            shortened = [
                safe_factor(G, H, group["hyper_lr"] * lr, group["safe"]) for G, H, lr in zip(Gs, Hs, lrs, strict=True)
            ]
            slopes = list(torch._foreach_mul(slopes, shortened))
        if all(lr is lrs[0] for lr in lrs):
            self.slopes = list(torch._foreach_mul(slopes, -lrs[0]))
        else:
            self.slopes = list(torch._foreach_mul(slopes, torch._foreach_neg(lrs)))

    def precondition(self, in_place: bool = True) -> None:
        """Form what the base optimizer will take for the gradient.

        Args:
            in_place: Write it into the memory of the gradient before, which is no longer needed.
        """
        olds: list[Tensor] | None = None
        if in_place and self.group["through"] != "velocity":
            for p, state in zip(self.params, self.states, strict=True):
                if not self.seen:
                    state["prev_grad"] = torch.empty_like(_grad(p))
            olds = [state["prev_grad"] for state in self.states]
            alike = all(
                old.dtype == G.dtype and old.stride() == G.stride() and old.is_contiguous()
                for old, G in zip(olds, self.Gs, strict=True)
            )
            olds = olds if alike else None
        self.steps = self.form.precondition(self.Ms, self.Gs, self.projected, olds)
        if self.group["normalize"]:
            torch._foreach_mul_(self.steps, self.form.scales(self.Ms))

    def remember(self) -> None:
        """Keep this step's gradient and learning rate for the next hypergradient."""
        lr, momentum = self.group["lr"], self.group.get("momentum", 0)
        if self.group["through"] == "step" and self.group.get("nesterov"):
            lr = lr * (1 + momentum)  # Nesterov's step is lr (p + momentum v), and v holds p once more
        M = self.Ms[0]
        used = lr.to(M, copy=True) if isinstance(lr, Tensor) else torch.full((), lr, dtype=M.dtype, device=M.device)
        for p, state in zip(self.params, self.states, strict=True):
            state["prev_lr"] = used
            if not self.seen:
                state["prev_grad"] = _grad(p).clone()
        if not self.seen:
            return
        kept, grads = [state["prev_grad"] for state in self.states], [_grad(p) for p in self.params]
        if self.group["through"] == "velocity":
            torch._foreach_mul_(kept, momentum)
            torch._foreach_add_(kept, grads)
        else:
            torch._foreach_copy_(kept, grads)


class Learned(NamedTuple):
    """What FOP has learned for one parameter.

    Attributes:
        form: Name of the preconditioner's form.
        P: The preconditioner `[m, m]`, or its diagonal for the forms that are diagonal.
        M: Its factor.
        eigenvalues: Of P, ascending.
        condition: The largest eigenvalue over the smallest; infinite where that is zero.
        gain: `|G P| / |G|` for the last gradient, the step-length gain; NaN before the first step.
        angle: Between `G P` and `G`, in degrees.
    """

    form: str
    P: Tensor
    M: Tensor
    eigenvalues: Tensor
    condition: float
    gain: float
    angle: float


class FOP(Optimizer):
    """First-order preconditioning via hypergradient descent, around any optimizer of `torch.optim`.

    Args:
        params: Parameters, named parameters or parameter groups, as for any optimizer; `fop_torch.assign` makes
            groups from rules. A group may overrule every option below except the last six.
        lr: Learning rate of the base optimizer, the paper's epsilon.
        hyper_lr: Learning rate of the hyper-optimizer, the paper's rho. 0 freezes M. Default 1e-4, the paper's
            (with Adam) for CIFAR-10 and ImageNet.
        preconditioner: `"spatial"` (k^2 x k^2, shared by all channels, Section 2.2), `"dense"` (m x m over the input
            dimension, Eq. (2)), `"low_rank"` (I + M M^T, Eq. (23)), `"diagonal"`, `"scalar"`, `"none"`, the paper's
            baselines `"s-hd"` and `"pp-hd"`, or `"auto"`: spatial for kernels larger than 1 x 1; for matrices dense
            up to 128 inputs, low rank above; none for vectors.
        rank: Columns of M for `"low_rank"`; None takes 16, or all where there are fewer. 0 is the base optimizer.
        normalize: FOP-norm, Eq. (11): `P sqrt(m) / |P|_F`, for the matrix forms.
        through_norm: With `normalize`, differentiate through the norm (exact); False holds the norm constant, as
            Algorithm 1 does. The paper gives no hypergradient for FOP-norm.
        order: `"paper"` steps, then updates M (Algorithm 1). `"m-first"` updates M, then steps: stable for about
            three times longer steps.
        index: `"printed"` differentiates at the present M, as Eq. (4) and Algorithm 1 print it; `"exact"` at the M
            that made the last step, at the price of a copy of M. The two agree for `order="m-first"`.
        through: What is differentiated. `"plain"`: a plain gradient step whatever the base, as the paper does.
            `"step"`: the base's last step (SGD, Adam, AdamW). `"velocity"`: momentum's whole sum, with M constant
            in time (SGD).
        scale: Standard deviation of the low rank's first M, the paper's sigma ("small").
        safe: A number tau in (0, 1): shorten the update of M so that no eigenvalue of M M^T falls below
            `(1 - tau)^2` times the smallest in one step. For plain SGD as the hyper-optimizer only.
        max_norm: Bound on the spectral norm of P: M is scaled down when P exceeds it. Safe by a small margin: the
            norm is bounded from above to within `m^(1/64)`.
        base: Class of the optimizer of the parameters.
        hyper: Class of the optimizer of M. Default Adam, as in the paper's experiments.
        hyper_options: Further options of `hyper`, such as `{"betas": (0.9, 0.99)}`.
        nonfinite: `"skip"`: a step whose gradient or hypergradient is not finite changes nothing and is counted in
            `skipped_steps`. `"ignore"`: no check.
        seed: Of the low rank's first M; the same on all processes.
        **base_options: Options of `base`, such as `momentum=0.9`.

    Raises:
        ValueError: If an option is out of range, or a form does not fit a parameter's shape.
        TypeError: If a parameter is complex or sharded.

    Example:
        >>> import torch
        >>> from fop_torch import FOP
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> optimizer = FOP(model.parameters(), lr=0.1)
        >>> model(torch.ones(2, 3)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.preconditioners()["0"].P.shape
        torch.Size([3, 3])
    """

    base: Optimizer
    hyper: Optimizer | None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        base: Callable[..., Optimizer] = SGD,
        hyper: Callable[..., Optimizer] = Adam,
        hyper_lr: float = OPTIONS["hyper_lr"],
        hyper_options: dict[str, Any] | None = None,
        preconditioner: str = OPTIONS["preconditioner"],
        rank: int | None = OPTIONS["rank"],
        normalize: bool = OPTIONS["normalize"],
        through_norm: bool = OPTIONS["through_norm"],
        order: str = OPTIONS["order"],
        index: str = OPTIONS["index"],
        through: str = OPTIONS["through"],
        scale: float = OPTIONS["scale"],
        safe: float | None = OPTIONS["safe"],
        max_norm: float | None = OPTIONS["max_norm"],
        nonfinite: str = "skip",
        seed: int = 0,
        **base_options: Any,
    ) -> None:
        if isinstance(params, Tensor):
            raise TypeError("params: expected parameters or groups of them, got one tensor; write [parameter]")
        params = [dict(each) if isinstance(each, dict) else each for each in params]
        for each in params:
            if isinstance(each, dict):
                each["params"] = [each["params"]] if isinstance(each["params"], Tensor) else list(each["params"])
        if nonfinite not in CHOICES["nonfinite"]:
            raise ValueError(f"nonfinite: expected one of {', '.join(CHOICES['nonfinite'])}, got {nonfinite!r}")
        for name, given in (("base", base), ("hyper", hyper)):
            if not (isinstance(given, type) and issubclass(given, Optimizer)):
                raise TypeError(f"{name}: expected a class of torch.optim, such as torch.optim.SGD, got {given!r}")
            if issubclass(given, (torch.optim.LBFGS, torch.optim.SparseAdam)):
                raise ValueError(
                    f"{name}: {given.__name__} is not supported: it evaluates the loss several times a step or takes "
                    "sparse gradients; use another optimizer of torch.optim"
                )
        if base_options.get("differentiable"):
            raise ValueError("differentiable: True is not supported: FOP forms its hypergradient itself")
        # The base checks its own options, on copies: adding a group fills it in place.
        self.base = base([dict(each) if isinstance(each, dict) else each for each in params], lr=lr, **base_options)
        self.hyper = None
        self._hyper_class = hyper
        self._nonfinite = nonfinite
        self._seed = seed
        self._skipped: int | Tensor = 0
        self._warned = False
        options = {
            "hyper_lr": hyper_lr,
            "preconditioner": preconditioner,
            "rank": rank,
            "normalize": normalize,
            "through_norm": through_norm,
            "order": order,
            "index": index,
            "through": through,
            "scale": scale,
            "safe": safe,
            "max_norm": max_norm,
            "hyper_options": hyper_options or {},
            "optimizers": (base.__name__, hyper.__name__),
        }
        super().__init__(params, {**self.base.defaults, **options})
        self.base.param_groups = self.param_groups
        self._build_hyper()

    # ------------------------------------------------------------------------------------------- groups and state

    @torch._disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the form of each of its parameters is settled here and kept in `group["forms"]`.

        Raises:
            ValueError: If an option is out of range, or a form does not fit a parameter's shape.
            TypeError: If a parameter is complex or sharded.
        """
        given = param_group["params"]
        given = [given] if isinstance(given, Tensor) else list(given)
        options = {**self.defaults, **param_group}
        self._check_options(options)
        forms, ranks = [], []
        for each in given:
            p = each[1] if isinstance(each, tuple) else each
            if isinstance(p, Tensor):
                _check_parameter(p)
                kind, rank = resolve(p.shape, options["preconditioner"], options["rank"])
                _check_form(p.shape, kind, options)
                forms.append(kind)
                ranks.append(rank)
        count = sum(len(group["params"]) for group in self.param_groups)
        super().add_param_group({**param_group, "params": given, "forms": forms, "ranks": ranks})
        group = self.param_groups[-1]
        for i, (p, kind, rank) in enumerate(zip(group["params"], forms, ranks, strict=True)):
            if kind != "none":
                generator = torch.Generator().manual_seed(self._seed + count + i)
                M = FORMS[kind].start(p.shape, rank, group["scale"], generator)
                self.state[p]["M"] = M.to(device=p.device, dtype=_factor_dtype(p))
        if self.hyper is not None or self.base.param_groups is self.param_groups:
            self._build_hyper()

    def _check_options(self, options: dict[str, Any]) -> None:
        for name in ("order", "index", "through"):
            if options[name] not in CHOICES[name]:
                raise ValueError(f"{name}: expected one of {', '.join(CHOICES[name])}, got {options[name]!r}")
        lr = options["hyper_lr"]
        if not (isinstance(lr, (int, float)) and 0 <= lr < math.inf):
            raise ValueError(f"hyper_lr: expected a finite number, at least 0, got {lr!r}")
        rank = options["rank"]
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
            raise ValueError(f"rank: expected a whole number, at least 0, or None, got {rank!r}")
        if not 0 <= options["scale"] < math.inf:
            raise ValueError(f"scale: expected a finite number, at least 0, got {options['scale']!r}")
        if options["max_norm"] is not None and not options["max_norm"] > 0:
            raise ValueError(f"max_norm: expected a positive number or None, got {options['max_norm']!r}")
        if options["safe"] is not None:
            if not 0 < options["safe"] < 1:
                raise ValueError(f"safe: expected a number between 0 and 1 or None, got {options['safe']!r}")
            plain = self._hyper_class is SGD and not set(options["hyper_options"]) - {"foreach", "fused"}
            multiplies = options["order"] == "m-first" or options["index"] == "printed"
            if not (plain and multiplies and not options["normalize"] and options["through"] != "step"):
                raise ValueError(
                    "safe: the bound holds where the update of M is (I + a S) M: use hyper=torch.optim.SGD without "
                    "momentum, index='printed' or order='m-first', through='plain', and no normalize"
                )
        if options["through"] == "velocity" and (not isinstance(self.base, SGD) or options["dampening"]):
            raise ValueError("through: 'velocity' needs torch.optim.SGD as the base, without dampening")
        if options["through"] == "step":
            known = type(self.base) in (SGD, Adam, AdamW)
            if not known or options.get("dampening") or options.get("amsgrad"):
                raise ValueError(
                    "through: 'step' is known for SGD (without dampening), Adam and AdamW (without amsgrad), got "
                    f"{type(self.base).__name__}; use through='plain'"
                )
            if type(self.base) is not SGD and options["order"] == "paper" and options["index"] == "printed":
                raise ValueError(
                    "through: Adam's step can be differentiated only at the M that made it; "
                    "use index='exact' or order='m-first' with through='step'"
                )

    def _build_hyper(self) -> None:
        """Make the hyper-optimizer for the factors M as they are, keeping the state of those it had."""
        groups = [
            {
                "params": [self.state[p]["M"] for p in group["params"] if "M" in self.state.get(p, {})],
                "lr": group["hyper_lr"],
                **group["hyper_options"],
            }
            for group in self._learning_groups()
        ]
        if not groups:
            return
        known = inspect.signature(self._hyper_class).parameters
        options: dict[str, Any] = {}
        # One call for all factors: torch's own default on a CPU is a loop over them.
        if not {"foreach", "fused"} & {key for group in groups for key in group}:
            options |= {"fused": True} if "fused" in known else {"foreach": True} if "foreach" in known else {}
        if "capturable" in known and all(group.get("capturable") for group in self.param_groups):
            options["capturable"] = True
        old = self.hyper
        self.hyper = self._hyper_class(groups, lr=self.param_groups[0]["hyper_lr"], **options)
        if old is not None:
            for M in [M for group in groups for M in group["params"] if M in old.state]:
                self.hyper.state[M] = old.state[M]

    def _learning_groups(self) -> list[dict[str, Any]]:
        """Groups with at least one factor; the hyper-optimizer has one group for each."""
        return [group for group in self.param_groups if any(kind != "none" for kind in group["forms"])]

    def __getstate__(self) -> dict[str, Any]:
        """What `copy.deepcopy` and pickle take along."""
        own = ("base", "hyper", "_hyper_class", "_nonfinite", "_seed", "_skipped", "_warned")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.base.param_groups = self.param_groups

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, in torch's form.

        A parameter's state holds the base's entries under their own names (so a checkpoint of the base alone loads
        too), `M`, `prev_grad` and `prev_lr`, and the hyper-optimizer's entries as `hyper_...`.
        """
        for pre in self._optimizer_state_dict_pre_hooks.values():
            pre(self)
        packed = self.base.state_dict()
        for i, p in enumerate(p for group in self.param_groups for p in group["params"]):
            own = self.state.get(p)
            if own:
                # A new dictionary: the base hands out its own.
                hyper = {f"hyper_{key}": value for key, value in self._hyper_state(own["M"]).items()}
                packed["state"][i] = {**packed["state"].get(i, {}), **own, **hyper}
        for post in self._optimizer_state_dict_post_hooks.values():
            packed = post(self, packed) or packed
        return packed

    def _hyper_state(self, M: Tensor) -> dict[str, Any]:
        return self.hyper.state.get(M, {}) if self.hyper is not None else {}

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`, to the last bit; M keeps its own precision.

        Options, forms and ranks become the checkpoint's. One of the base optimizer alone loads too: what FOP adds to
        it stays as it is.

        Raises:
            TypeError: If it is no checkpoint.
            ValueError: If it is of other parameters or optimizers, or incomplete; nothing is changed then.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict: expected what state_dict() gave, got {type(state_dict).__name__}")
        state_dict = dict(state_dict)
        for pre in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre(self, state_dict) or state_dict
        before = self.state, self.param_groups, self.base.state, self.hyper
        try:
            self._load(state_dict)
        except Exception:
            # Loading makes new dictionaries; the old ones are as they were.
            self.state, self.param_groups, self.base.state, self.hyper = before
            self.base.param_groups = self.param_groups
            raise
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)

    def _load(self, state_dict: dict[str, Any]) -> None:
        missing = [repr(key) for key in ("state", "param_groups") if key not in state_dict]
        if missing:
            raise ValueError(f"state_dict: expected what state_dict() gave, got one without {' and '.join(missing)}")
        params = [p for group in self.param_groups for p in group["params"]]
        indices = [i for group in state_dict["param_groups"] for i in group["params"]]
        own: dict[int, dict[str, Any]] = {}
        hypers: dict[int, dict[str, Any]] = {}
        bases: dict[int, dict[str, Any]] = {}
        for i, entry in state_dict["state"].items():
            own[i] = {key: entry[key] for key in OWN_STATE if key in entry}
            hypers[i] = {key[6:]: value for key, value in entry.items() if key.startswith("hyper_")}
            bases[i] = {k: v for k, v in entry.items() if k not in OWN_STATE and not k.startswith("hyper_")}
        bases = {i: entry for i, entry in bases.items() if entry}
        groups = deepcopy(state_dict["param_groups"])
        if len(groups) == len(self.param_groups):
            for group, saved in zip(self.param_groups, groups, strict=True):
                if saved.get("optimizers", group["optimizers"]) != group["optimizers"]:
                    raise ValueError(
                        f"state_dict: saved with the base {saved['optimizers'][0]} and the hyper-optimizer "
                        f"{saved['optimizers'][1]}, but here they are {' and '.join(group['optimizers'])}; build FOP "
                        "as it was saved"
                    )
                if "forms" not in saved:  # the base's alone
                    for i, p in zip(saved["params"], group["params"], strict=False):
                        own[i] = {"M": self.state[p]["M"]} if "M" in self.state.get(p, {}) else {}
                for key, value in group.items():
                    saved.setdefault(key, value)
        self.base.load_state_dict({"state": bases, "param_groups": groups})
        self.param_groups = self.base.param_groups
        _keep_numbers(self.base, dict(zip(params, [bases.get(i, {}) for i in indices], strict=True)))
        self.state = defaultdict(dict)
        learning: list[int] = []
        remaining = iter(indices)
        for group in self.param_groups:
            self._check_options(group)
            if not len(group["forms"]) == len(group["ranks"]) == len(group["params"]):
                raise ValueError(f"state_dict: expected forms and ranks of {len(group['params'])} parameters")
            for kind, rank, p in zip(group["forms"], group["ranks"], group["params"], strict=True):
                i = next(remaining)
                _check_form(p.shape, kind, group)
                _check_entries(i, p, kind, rank, own.get(i, {}), hypers.get(i, {}), bases.get(i, {}))
                if kind != "none":
                    learning.append(i)
                    self.state[p] = {key: value.to(device=p.device, copy=True) for key, value in own[i].items()}
        self.hyper = None
        self._build_hyper()
        if self.hyper is not None:
            packed = self.hyper.state_dict()
            packed["state"] = {k: hypers[i] for k, i in enumerate(learning) if hypers.get(i)}
            self.hyper.load_state_dict(packed)
            Ms = [M for group in self.hyper.param_groups for M in group["params"]]
            _keep_numbers(self.hyper, dict(zip(Ms, [hypers.get(i, {}) for i in learning], strict=True)))

    # ------------------------------------------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients as they are in `p.grad`, which stay as they are.

        The hypergradient sees what the step sees: gradients accumulated, clipped or unscaled before the call.

        Args:
            closure: Evaluates the loss anew and returns it, with gradients enabled.

        Returns:
            What the closure returned.

        Raises:
            TypeError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        buckets, bare = self._sort()
        late = [bucket for bucket in buckets if bucket.group["order"] == "m-first"]
        paper = [bucket for bucket in buckets if bucket.group["order"] == "paper"]
        for bucket in buckets:
            bucket.look_back()
        if torch.compiler.is_compiling():
            for bucket in paper:
                bucket.precondition(in_place=False)
        well, before = self._prepare(buckets, bare, late)
        if well is False:
            return loss
        try:
            _bare_step(self.base)
        finally:
            for bucket in buckets:
                for p, grad in zip(bucket.params, bucket.grads, strict=True):
                    p.grad = grad
        for bucket in buckets:
            bucket.remember()
        if before is not None and isinstance(well, Tensor):
            before.restore_unless(well)
            self._skipped = self._skipped + ~well
        return loss

    # A compiled step is cut here and nowhere else: the host may have to look at a number.
    @torch._dynamo.disable
    def _prepare(
        self, buckets: list[Bucket], bare: list[Tensor], late: list[Bucket]
    ) -> tuple[bool | Tensor | None, Snapshot | None]:
        """Look whether all is finite, move the factors M, and lay the preconditioned gradients before the base.

        Returns:
            Whether the step is to be taken (see `_well`), and the way back where that is not known yet.
        """
        well = self._well(buckets, bare)
        if well is False:
            self._skip()
            return False, None
        before = self._before(buckets, bare, well) if isinstance(well, Tensor) or (well and late) else None
        for bucket in buckets:
            if bucket.group["order"] == "paper" and not bucket.steps:
                bucket.precondition()
        self._move_factors(buckets)
        if before is not None and late:
            # The factors of this step have moved after they were looked at.
            small = finite(total_sizes([], [M for bucket in late for M in bucket.Ms]))
            if isinstance(well, Tensor):
                well = well & small
            elif not small:
                before.restore()
                self._skip()
                return False, None
        for bucket in late:
            bucket.precondition()
        for bucket in buckets:
            for p, step in zip(bucket.params, bucket.steps, strict=True):
                p.grad = step if step.dtype == p.dtype else step.to(p.dtype)
            if bucket.group["through"] == "step" and not isinstance(self.base, SGD):
                for p, state in zip(bucket.params, bucket.states, strict=True):
                    state["sensitivity"] = adam_sensitivity(p, self.base.state[p], bucket.group)
        return well, before

    def _sort(self) -> tuple[list[Bucket], list[Tensor]]:
        """Parameters with a gradient, in buckets by group and form; and the other parameters with one."""
        buckets: dict[Any, Bucket] = {}
        bare: list[Tensor] = []
        for number, group in enumerate(self.param_groups):
            for p, kind in zip(group["params"], group["forms"], strict=True):
                grad = p.grad
                if grad is None:
                    continue
                if grad.layout is not torch.strided:
                    raise TypeError(
                        f"p.grad: sparse gradients are not supported, got one of shape {list(p.shape)}, {p.dtype}; "
                        "build the embedding with sparse=False"
                    )
                if kind == "none":
                    bare.append(p)
                    continue
                state = self.state[p]
                M = state["M"]
                if M.device != p.device:
                    self._follow(p, state)
                seen = "prev_grad" in state
                key = (number, kind, seen, M.dtype, M.device, M.shape[-1] if kind == "spatial" else None)
                bucket = buckets.get(key)
                if bucket is None:
                    bucket = buckets[key] = Bucket(group, FORMS[kind], seen)
                bucket.params.append(p)
                bucket.states.append(state)
                bucket.Ms.append(M)
                bucket.grads.append(grad)
                bucket.Gs.append(grad if grad.dtype == M.dtype else grad.to(M.dtype))
        return list(buckets.values()), bare

    def _follow(self, p: Tensor, state: dict[str, Any]) -> None:
        """The model has moved to another device since: take M, and what stands beside it, there."""
        for entries in (state, self._hyper_state(state["M"])):
            for value in entries.values():
                if isinstance(value, Tensor):
                    value.data = value.data.to(p.device)

    def _well(self, buckets: list[Bucket], bare: list[Tensor]) -> bool | Tensor | None:
        """Is everything finite that this step starts from?

        Returns:
            None without a check. A bool on a CPU, where reading a number costs nothing, and wherever a state is yet
            to be made or is kept on the host. Else a 0-d tensor on the device, so that the host does not wait.
        """
        if self._nonfinite == "ignore" or not (buckets or bare):
            return None
        # Each hypergradient is made of all entries of the gradient: where there is one, it is looked at alone.
        tensors = [_grad(p) for p in bare] + [each for bucket in buckets for each in bucket.slopes or bucket.Gs]
        sizes = total_sizes(tensors, [M for bucket in buckets for M in bucket.Ms])
        if sizes[0].device.type == "cpu" or not self._settled(buckets):
            return all(math.isfinite(size) for size in sizes)
        return finite(sizes)

    def _settled(self, buckets: list[Bucket]) -> bool:
        """Do all states exist already, on their parameter's device?"""
        for bucket in buckets:
            if not bucket.seen:
                return False
            for p, M in zip(bucket.params, bucket.Ms, strict=True):
                if bucket.slopes and (self.hyper is None or M not in self.hyper.state):
                    return False
                entries = [*self.base.state.get(p, {}).values(), *self._hyper_state(M).values()]
                if any(isinstance(entry, Tensor) and entry.device != p.device for entry in entries):
                    return False
        return True

    def _before(self, buckets: list[Bucket], bare: list[Tensor], well: bool | Tensor) -> Snapshot:
        """The way back: of the factors, and of the parameters too if the host will not know."""
        Ms = [M for bucket in buckets for M in bucket.Ms]
        states = [self.hyper.state[M] for M in Ms] if self.hyper is not None else []
        if not isinstance(well, Tensor):
            return Snapshot(Ms, states)
        params = bare + [p for bucket in buckets for p in bucket.params]
        states += [state for bucket in buckets for state in bucket.states]
        states += [self.base.state[p] for p in params if p in self.base.state]
        return Snapshot(params, states)

    def _skip(self) -> None:
        """Count a skipped step; say so the first time."""
        self._skipped = self._skipped + 1
        if not self._warned:
            self._warned = True
            warnings.warn(
                "FOP skipped a step: a gradient, hypergradient or preconditioner is not finite. Nothing was changed; "
                "skipped_steps counts such steps. If there are many, lower lr or hyper_lr, or set max_norm.",
                RuntimeWarning,
                stacklevel=5,
            )

    def _move_factors(self, buckets: list[Bucket]) -> None:
        """Hand the hypergradients to the hyper-optimizer."""
        for bucket in buckets:
            if bucket.group["order"] == "paper" and bucket.group["index"] == "exact":
                for M, state in zip(bucket.Ms, bucket.states, strict=True):
                    state["prev_M"] = M.clone()
        learning = [bucket for bucket in buckets if bucket.slopes]
        if self.hyper is None or not learning:
            return
        for hyper_group, group in zip(self.hyper.param_groups, self._learning_groups(), strict=True):
            hyper_group["lr"] = group["hyper_lr"]
        for bucket in learning:
            for M, slope in zip(bucket.Ms, bucket.slopes, strict=True):
                M.grad = slope
        _bare_step(self.hyper)
        for bucket in learning:
            for M in bucket.Ms:
                M.grad = None
                self.hyper.state[M]  # from now on its state is known to exist, be it empty
            if bucket.group["max_norm"] is not None:
                bucket.form.limit(bucket.Ms, bucket.group["max_norm"])

    # ------------------------------------------------------------------------------------------ what it learned

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped for a number that is not finite. Reading it waits for the device."""
        return int(self._skipped)

    def _named(self) -> list[tuple[str, Tensor, dict[str, Any], str, int | None]]:
        """Each parameter's name (its number where it has none), itself, its group, its form, its rank."""
        found: list[tuple[str, Tensor, dict[str, Any], str, int | None]] = []
        for group in self.param_groups:
            names = group.get("param_names") or [str(len(found) + i) for i in range(len(group["params"]))]
            for name, p, kind, rank in zip(names, group["params"], group["forms"], group["ranks"], strict=True):
                found.append((name, p, group, kind, rank))
        return found

    @torch.no_grad()
    def preconditioners(self) -> dict[str, Learned]:
        """What FOP has learned, by parameter name, or by number where the parameters came without names."""
        found = {}
        for name, p, group, kind, _ in self._named():
            if kind == "none":
                continue
            state = self.state[p]
            M = state["M"]
            grad = (
                state["prev_grad"].to(M.dtype) if "prev_grad" in state else torch.full_like(p, math.nan, dtype=M.dtype)
            )
            found[name] = learned(kind, M, grad, group["normalize"])
        return found

    def memory_usage(self) -> dict[str, int]:
        """Bytes of state, in total: of the `base`, the factors M, the `previous` gradients, the `hyper`-optimizer."""
        sizes = {"base": 0, "M": 0, "previous": 0, "hyper": 0}
        for _, p, _, kind, _ in self._named():
            sizes["base"] += _bytes(self.base.state.get(p, {}).values())
            if kind != "none":
                state = self.state[p]
                sizes["M"] += _bytes([state["M"]])
                sizes["previous"] += _bytes(value for key, value in state.items() if key not in ("M", "prev_lr"))
                sizes["hyper"] += _bytes(self._hyper_state(state["M"]).values())
        return sizes

    def describe(self) -> str:
        """A table: which parameter has which preconditioner, the shape of its M, its entries; in total, memory."""
        rows = [("parameter", "shape", "preconditioner", "M", "entries")]
        total = 0
        for name, p, _, kind, _ in self._named():
            M = self.state[p]["M"] if kind != "none" else None
            entries = 0 if M is None else M.numel()
            total += entries
            shape = "" if M is None else " x ".join(map(str, M.shape)) or "1"
            rows.append((name, " x ".join(map(str, p.shape)) or "1", kind, shape, f"{entries:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.memory_usage().items())
        return "\n".join(
            [lines[0], "-" * sum(widths, 8), *lines[1:], f"{total:,} entries of M; bytes of state: {sizes}"]
        )


def adam_sensitivity(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """How Adam's next change moves with its gradient: the diagonal `du/dp`, per unit of learning rate.

    `u = m_hat / (sqrt(v_hat) + eps)`, so `du/dp = c1 / (sqrt(v_hat) + eps) - m_hat c2 p / (sqrt(v_hat) (...)^2)`
    with `c = (1 - beta) / (1 - beta^t)`. The paper leaves it out; `fop_theory.adam` derives it.

    Args:
        p: Parameter whose `grad` is what Adam will be fed.
        state: Adam's state before the step.
        group: Adam's options.

    Returns:
        Of the parameter's shape.
    """
    grad = _grad(p)
    if group["maximize"]:
        grad = -grad
    if group["weight_decay"] and not group["decoupled_weight_decay"]:
        grad = grad + group["weight_decay"] * p
    b1, b2 = group["betas"]
    step = state.get("step", 0)
    # A count kept on the host is a float32 tensor: as a number it costs no wait, and no digits of beta^t.
    on_host = isinstance(step, Tensor) and step.device.type == "cpu" and not torch.compiler.is_compiling()
    t = 1 + (step.item() if on_host else step)
    first = b1 * state["exp_avg"] + (1 - b1) * grad if state else (1 - b1) * grad
    second = b2 * state["exp_avg_sq"] + (1 - b2) * grad.square() if state else (1 - b2) * grad.square()
    root = (second / (1 - b2**t)).sqrt()
    size = root + group["eps"]
    # Where all gradients were zero, the quotient is 0/0 and its limit, with m = 0, is zero.
    bend = torch.where(root > 0, first * grad / root, 0) / (1 - b1**t) * ((1 - b2) / (1 - b2**t))
    return (1 - b1) / (1 - b1**t) / size - bend / size.square()


def learned(kind: str, M: Tensor, grad: Tensor, normalize: bool) -> Learned:
    """Look at a factor M: its P, eigenvalues, and what P does to a gradient.

    Args:
        kind: A key of `FORMS`.
        M: The factor.
        grad: A gradient of the parameter's shape.
        normalize: Is P divided as in Eq. (11)?
    """
    form = FORMS[kind]
    scale = form.scales([M])[0] if normalize else 1.0
    P = scale * form.matrix(M, grad.shape)
    values = torch.linalg.eigvalsh(P) if P.dim() == 2 else P.sort().values
    step = scale * form.precondition([M], [grad])[0]
    size, length = torch.linalg.vector_norm(grad), torch.linalg.vector_norm(step)
    cosine = ((grad * step).sum() / (size * length)).clamp(-1, 1)
    return Learned(
        kind, P, M.clone(), values, float(values[-1] / values[0]) if values[0] else math.inf,
        float(length / size), math.degrees(math.acos(cosine)) if cosine.isfinite() else math.nan,
    )  # fmt: skip


def _bare_step(optimizer: Optimizer) -> None:
    """Step without torch's wrappers: hooks and profiler ranges are FOP's own, and a wrapper cuts a compiled graph."""
    inspect.unwrap(type(optimizer).step)(optimizer)


def _factor_dtype(p: Tensor) -> torch.dtype:
    # Small changes of M would be lost in half precision.
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _bytes(values: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def _keep_numbers(optimizer: Optimizer, saved: dict[Tensor, dict[str, Any]]) -> None:
    """After `load_state_dict`: memory of its own for every entry, and single numbers as they were saved.

    torch casts them to the parameter's dtype, in which NAdam's product of decays, say, would lose its digits.
    """
    for p, entries in saved.items():
        loaded = optimizer.state.get(p, {})
        for key, value in entries.items():
            if isinstance(value, Tensor):
                loaded[key] = loaded[key].to(value.dtype if value.dim() == 0 else loaded[key].dtype, copy=True)
                if value.dim() == 0:
                    loaded[key].copy_(value)


def _check_form(shape: torch.Size, kind: str, options: dict[str, Any]) -> None:
    """Raise `ValueError` unless the form fits the parameter's shape and its group's options."""
    if kind == "none":
        return
    if kind not in FORMS:
        raise ValueError(f"forms: expected 'none' or one of {', '.join(FORMS)}, got {kind!r}")
    FORMS[kind].check(shape)
    if options["normalize"] and not FORMS[kind].matrix_form:
        kind_error = f"normalize: Eq. (11) is for the matrix forms, got preconditioner {kind!r}"
        raise ValueError(f"{kind_error}; use 'spatial', 'dense' or 'low_rank'")
    if options["safe"] is not None and not FORMS[kind].positive:
        raise ValueError(f"safe: {kind!r} may become negative by design; use 'scalar' or 'diagonal'")


def _check_entries(i: int, p: Tensor, kind: str, rank: int | None, own: Any, hyper: Any, base: Any) -> None:
    """Raise `ValueError` unless what a checkpoint holds for parameter number i is complete and has its shapes."""
    shapes: dict[str, list[int]] = {"prev_grad": list(p.shape), "sensitivity": list(p.shape), "prev_lr": []}
    held = [(key, value, list(p.shape)) for key, value in base.items()]
    if kind != "none":
        shape = list(FORMS[kind].factor_shape(p.shape, rank))
        shapes |= {"M": shape, "prev_M": shape}
        held += [(key, value, shapes[key]) for key, value in own.items()]
        held += [(f"hyper_{key}", value, shape) for key, value in hyper.items()]
        for key in ["M", "prev_grad", "prev_lr"] if len(own) > 1 or hyper else ["M"]:
            if key not in own:
                raise ValueError(f"state_dict: parameter {i} lacks {key!r}; save what state_dict() gives, whole")
    for name, value, shape in held:
        found = list(value.shape) if isinstance(value, Tensor) else None
        if name in shapes:
            fits = found == shape
        else:
            # The optimizers of torch keep entries of the parameter's shape, sums over its dimensions, and numbers.
            fits = found is None or (
                len(found) <= len(shape) and all(a in (1, b) for a, b in zip(found[::-1], shape[::-1], strict=False))
            )
        if not fits:
            raise ValueError(
                f"state_dict: expected {name} of shape {shape} for parameter {i} of shape {list(p.shape)}, got "
                f"{value if found is None else found}; build the optimizer for the model that was saved"
            )


def _check_parameter(p: Tensor) -> None:
    if not p.dtype.is_floating_point:
        raise TypeError(f"params: expected real floating-point parameters, got one of shape {list(p.shape)}, {p.dtype}")
    if hasattr(p, "device_mesh"):
        raise TypeError(
            f"params: sharded parameters (DTensor) are not supported, got one of shape {list(p.shape)}; "
            "use DistributedDataParallel, or keep the torch optimizer for this parameter"
        )
