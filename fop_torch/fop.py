"""FOP as a PyTorch optimizer: `FOP(model.parameters(), lr=0.05, momentum=0.9)`.

A step has two phases: first every hypergradient, from this gradient and the one before; then every update.
FOP owns two ordinary optimizers of torch: `base` moves the parameters and is fed the preconditioned gradient,
`hyper` moves the factors M and is fed the hypergradient. FOP's own state is M and the previous gradient.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from fop_torch import checkpoint, kernels, report
from fop_torch.assign import resolve
from fop_torch.bucket import Bucket, adam_sensitivity, gradient, in_autocast
from fop_torch.guard import LARGEST, Snapshot, finite, total_sizes
from fop_torch.options import (
    CHOICES,
    OPTIONS,
    check_form,
    check_group,
    check_number,
    check_options,
    check_parameter,
    check_rank,
    warn,
)
from fop_torch.preconditioners import FORMS
from fop_torch.report import Learned


class FOP(Optimizer):
    """First-order preconditioning via hypergradient descent, around any optimizer of `torch.optim`.

    Args:
        params: Parameters, named parameters or parameter groups, as for any optimizer; `fop_torch.assign` makes
            groups from rules. A group may overrule the options, but not `base`, `hyper`, `nonfinite`, `null_step`
            and `seed`, which are refused there.
        lr: Learning rate of the base optimizer, the paper's epsilon.
        hyper_lr: Learning rate of the hyper-optimizer, the paper's rho. 0 freezes M. Default 1e-4, the paper's
            (with Adam) for CIFAR-10 and ImageNet.
        preconditioner: `"spatial"` (k^2 x k^2, shared by all channels, Section 2.2), `"dense"` (m x m over the input
            dimension, Eq. (2)), `"low_rank"` (I + M M^T, Eq. (23)), `"diagonal"`, `"scalar"`, `"none"`, the paper's
            baselines `"s-hd"` and `"pp-hd"`, `"exponential"`, `"linear"`, or `"auto"`: spatial for kernels larger than
            1 x 1; for matrices dense up to 128 inputs, low rank above; none for vectors. A form that is named is given
            to vectors too: a bias of n entries gets a dense M of n x n. `"exponential"` is
            P = exp(M), for every shape (over 128 inputs a rate alone), learned by the normalised hypergradient: its
            `hyper_lr` has no unit; take `hyper=torch.optim.SGD, hyper_lr=0.01, max_norm=2`. `"linear"` is P = M
            itself, in the same shapes and with the same rates; it may become indefinite, from which `max_norm` keeps
            it, and `null_step` protects the loss.
        rank: Columns of M for `"low_rank"`, also where `"auto"` chooses it; None takes 16, or all where there are
            fewer. 0 is the base optimizer.
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
            norm is bounded from above to within `m^(1/64)`. For `"exponential"` and `"linear"` a budget: P and its
            inverse keep it; for `"exponential"` it is 1000 when left out.
        base: Class of the optimizer of the parameters.
        hyper: Class of the optimizer of M. Default Adam, as in the paper's experiments.
        hyper_options: Further options of `hyper`, such as `{"betas": (0.9, 0.99)}`.
        nonfinite: `"skip"`: a step whose gradient or hypergradient is not finite changes nothing and is counted in
            `skipped_steps`. `"ignore"`: no check.
        null_step: Look ahead, with a closure for `step`: the better of the base's own step and the one with P is
            taken, and M learns from the gradient at the latter. For a loss that is deterministic, the same on all
            processes; `step` evaluates it three times.
        seed: Of the low rank's first M; the same on all processes.
        **base_options: Options of `base`, such as `momentum=0.9`. `foreach=True` keeps FOP to torch's calls too;
            else `fop_torch.kernels` takes the products of a spatial step on a CPU, SGD's own step together with them,
            where its library has been built.

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
        null_step: bool = False,
        seed: int = 0,
        **base_options: Any,
    ) -> None:
        if isinstance(params, Tensor):
            raise TypeError("params: expected parameters or groups of them, got one tensor; write [parameter]")
        if isinstance(params, torch.nn.Module):
            got = type(params).__name__
            raise TypeError(f"params: expected parameters or groups, got a module ({got}); write model.parameters()")
        params = [dict(each) if isinstance(each, dict) else each for each in params]
        for each in params:
            if isinstance(each, dict):
                each["params"] = _listed(each)
        check_number("lr", lr)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed: expected a whole number, got {seed!r}")
        if nonfinite not in CHOICES["nonfinite"]:
            raise ValueError(f"nonfinite: expected one of {', '.join(CHOICES['nonfinite'])}, got {nonfinite!r}")
        if not isinstance(null_step, bool):
            raise ValueError(f"null_step: expected True or False, got {null_step!r}")
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
        try:
            self.base = base([dict(each) if isinstance(each, dict) else each for each in params], lr=lr, **base_options)
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                raise
            own = ", ".join(
                name for name in inspect.signature(FOP).parameters if name not in ("params", "base_options")
            )
            raise TypeError(f"{error}; beside the base's options FOP takes {own}") from error
        self.hyper = None
        self._hyper_class = hyper
        self._nonfinite = nonfinite
        self._null_step = null_step
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
        given = _listed(param_group)
        check_group(param_group, self.defaults)
        options = {**self.defaults, **param_group}
        check_options(options, self.base, self._hyper_class)
        if self._null_step and options.get("maximize"):
            raise ValueError("null_step: the better of two steps is the one with the smaller loss; not with maximize")
        if "rank" in param_group or "preconditioner" not in param_group:  # else the rank is meant for other groups
            check_rank(options)
        forms, ranks = [], []
        for each in given:
            p = each[1] if isinstance(each, tuple) else each
            if isinstance(p, Tensor):
                check_parameter(p)
                kind, rank = resolve(p.shape, options["preconditioner"], options["rank"])
                check_form(p.shape, kind, options)
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
                if group["max_norm"] is not None:
                    FORMS[kind].limit([self.state[p]["M"]], group["max_norm"])
        if self.hyper is not None or self.base.param_groups is self.param_groups:
            self._build_hyper()

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
        own = ("base", "hyper", "_hyper_class", "_nonfinite", "_null_step", "_seed", "_skipped", "_warned")
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
        packed = checkpoint.pack(self)
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
            checkpoint.load(self, state_dict)
        except Exception:
            # Loading makes new dictionaries; the old ones are as they were.
            self.state, self.param_groups, self.base.state, self.hyper = before
            self.base.param_groups = self.param_groups
            raise
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)

    # ------------------------------------------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients as they are in `p.grad`, which stay as they are.

        They are kept for the next step too; on a CPU torch copies a large one only if somebody writes to it.

        The hypergradient sees what the step sees: gradients accumulated, clipped or unscaled before the call.

        Args:
            closure: Evaluates the loss anew and returns it, with gradients enabled.

        Returns:
            What the closure returned.

        Raises:
            TypeError: If a gradient is sparse.
            ValueError: If there is no closure for `null_step`.
        """
        if self._null_step:
            return self._look_ahead(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take()
        return loss

    @torch._disable_dynamo
    def _look_ahead(self, closure: Callable[[], Any] | None) -> Any:
        """Try the base's own step and the one with P, and keep that which leads to the smaller loss."""
        evaluate: Callable[[], Any] = torch.enable_grad()(closure) if closure is not None else lambda: None
        loss = evaluate()
        if loss is None:
            raise ValueError("null_step: step needs a closure that evaluates the loss and returns it")
        params = [p for group in self.param_groups for p in group["params"]]
        states = [(self.base.state, p) for p in params]
        grads = [None if p.grad is None else p.grad.clone() for p in params]
        before = Snapshot(params, states)
        _bare_step(self.base)
        own, there = _number(evaluate()), Snapshot(params, states)
        before.restore()
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        self._take()
        if not _number(evaluate()) <= own and math.isfinite(own):
            self._learn()
            there.restore()
        return loss

    def _learn(self) -> None:
        """Let M learn from the gradient at a point that is given up, and nothing from the way to the next one."""
        buckets, bare = self._sort()
        if _left_autocast(buckets, self._learn):
            return
        for bucket in buckets:
            bucket.look_back()
        well = self._well(buckets, bare)
        if well is None or bool(well):
            self._move_factors(buckets)
        for state in [state for bucket in buckets for state in bucket.states if "prev_grad" in state]:
            state["prev_grad"].zero_()

    def _take(self) -> None:
        """Take the step with the gradients as they are."""
        buckets, bare = self._sort()
        if _left_autocast(buckets, self._take):
            return
        late = [bucket for bucket in buckets if bucket.group["order"] == "m-first"]
        paper = [bucket for bucket in buckets if bucket.group["order"] == "paper"]
        for bucket in buckets:
            bucket.look_back()
        if torch.compiler.is_compiling():
            for bucket in paper:
                bucket.precondition(self.base, in_place=False)
        well, before = self._prepare(buckets, bare, late)
        if well is False:
            return
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
            if isinstance(self._skipped, Tensor):
                self._skipped += ~well  # in place, as all that a captured step keeps
            else:
                self._skipped = self._skipped + ~well

    # A compiled step is cut here and nowhere else: the host may have to look at a number. `torch._dynamo.disable`
    # does the same, and takes a second to import.
    @torch._disable_dynamo
    def _prepare(
        self, buckets: list[Bucket], bare: list[Tensor], late: list[Bucket]
    ) -> tuple[bool | Tensor | None, Snapshot | None]:
        """Look whether all is finite, move the factors M, and lay the preconditioned gradients before the base.

        Where the library takes the base's step in one pass with the product, that is taken here, and nothing left.

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
                bucket.precondition(self.base)
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
            bucket.precondition(self.base)
        for p in bare:
            self.base.state[p]  # from now on its state is known to exist, be it empty
        for bucket in buckets:
            if bucket.joint is not None:
                bucket.move()
                for p in bucket.params:
                    p.grad = None  # nothing is left for the base
                continue
            for p, step in zip(bucket.params, bucket.steps, strict=True):
                if step.dtype != p.dtype:
                    if p.dtype == torch.float16:  # P may take a gradient out of its narrow range
                        step = step.clamp(torch.finfo(p.dtype).min, torch.finfo(p.dtype).max)
                    step = step.to(p.dtype)
                p.grad = _laid_out_as(p, step) if bucket.group.get("fused") else step
            if bucket.group["through"] == "step" and not isinstance(self.base, SGD):
                for p, state in zip(bucket.params, bucket.states, strict=True):
                    sensitivity = adam_sensitivity(p, self.base.state[p], bucket.group)
                    known = state.setdefault("sensitivity", sensitivity)
                    if known is not sensitivity:
                        known.copy_(sensitivity)
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
                key = (number, kind, seen, M.dtype, M.device, M.shape[-1] if FORMS[kind].batched else None)
                bucket = buckets.get(key)
                if bucket is None:
                    # foreach=True asks for torch's calls.
                    form = FORMS[kind] if group.get("foreach") else kernels.FORMS.get(kind, FORMS[kind])
                    bucket = buckets[key] = Bucket(group, form, seen)
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
        # Each hypergradient is made of all entries of the gradient: where there is one, it is looked at alone, unless
        # Adam's derivative scales it.
        tensors = [gradient(p) for p in bare]
        for bucket in buckets:
            tensors += bucket.slopes or bucket.Gs
            if bucket.slopes and bucket.group["through"] == "step":
                tensors += bucket.Gs
        factors = [M for bucket in buckets for M in bucket.Ms]
        if kernels.takes(1, [*tensors, *factors]):
            return kernels.bounded(tensors, LARGEST) and kernels.bounded(factors, LARGEST / 1e20)
        sizes = total_sizes(tensors, factors)
        if sizes[0].device.type == "cpu":
            return all(math.isfinite(size) for size in sizes)
        well = finite(sizes)
        return well if self._settled(buckets, bare) else bool(well)

    def _settled(self, buckets: list[Bucket], bare: list[Tensor]) -> bool:
        """Do all states exist already, on their parameter's device?"""
        for p in bare:
            if p not in self.base.state or _elsewhere(self.base.state[p], p):
                return False
        for bucket in buckets:
            if not bucket.seen:
                return False
            for p, M in zip(bucket.params, bucket.Ms, strict=True):
                if bucket.slopes and (self.hyper is None or M not in self.hyper.state):
                    return False
                if _elsewhere(self.base.state.get(p, {}), p) or _elsewhere(self._hyper_state(M), p):
                    return False
        return True

    def _before(self, buckets: list[Bucket], bare: list[Tensor], well: bool | Tensor) -> Snapshot:
        """The way back: of the factors, and of the parameters too if the host will not know."""
        learning = [M for bucket in buckets if bucket.slopes for M in bucket.Ms]
        states: list[tuple[dict[Tensor, Any], Tensor]] = []
        if self.hyper is not None:
            states += [(self.hyper.state, M) for M in learning]
        own = [p for bucket in buckets for p in bucket.params]
        if isinstance(well, Tensor):
            moved = bare + own
            states += [(self.base.state, p) for p in moved if p in self.base.state]
        else:
            # The host will know before the base moves, but after the gradients of the last step are written over.
            moved = learning
            own = [p for bucket in buckets if bucket.group["order"] == "paper" for p in bucket.params]
        return Snapshot(moved, states + [(self.state, p) for p in own])

    def _skip(self) -> None:
        """Count a skipped step; say so the first time."""
        self._skipped = self._skipped + 1
        if not self._warned:
            self._warned = True
            warn(
                "FOP skipped a step: a gradient, hypergradient or preconditioner is not finite. Nothing was changed; "
                "skipped_steps counts such steps. If there are many, lower lr or hyper_lr, or set max_norm.",
                RuntimeWarning,
            )

    def _move_factors(self, buckets: list[Bucket]) -> None:
        """Hand the hypergradients to the hyper-optimizer."""
        for bucket in buckets:
            if bucket.group["order"] == "paper" and bucket.group["index"] == "exact":
                for M, state in zip(bucket.Ms, bucket.states, strict=True):
                    state["prev_M"] = state["prev_M"].copy_(M) if "prev_M" in state else M.clone()
        learning = [bucket for bucket in buckets if bucket.slopes]
        if self.hyper is None or not learning:
            return
        for hyper_group, group in zip(self.hyper.param_groups, self._learning_groups(), strict=True):
            hyper_group["lr"] = group["hyper_lr"]
        for bucket in learning:
            for M, slope in zip(bucket.Ms, bucket.slopes, strict=True):
                M.grad = _laid_out_as(M, slope)
        _bare_step(self.hyper)
        for bucket in learning:
            for M in bucket.Ms:
                M.grad = None
                self.hyper.state[M]  # from now on its state is known to exist, be it empty
            bound = bucket.group["max_norm"] or bucket.form.bound
            if bound is not None:
                bucket.form.limit(bucket.Ms, bound)

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

    def preconditioners(self) -> dict[str, Learned]:
        """What FOP has learned, by parameter name, or by number where the parameters came without names."""
        return report.preconditioners(self)

    def memory_usage(self) -> dict[str, int]:
        """Bytes of state, in total: of the `base`, the factors `M`, the `previous` step, the `hyper`-optimizer."""
        return report.memory_usage(self)

    def describe(self) -> str:
        """A table: which parameter has which preconditioner, the shape of its M, its entries; in total, memory."""
        return report.describe(self)


def _left_autocast(buckets: list[Bucket], call: Callable[[], None]) -> bool:
    """Would products be taken in half precision? Then all is done anew without."""
    for device in {bucket.Ms[0].device for bucket in buckets}:
        if in_autocast(device):
            with torch.autocast(device.type, enabled=False):
                call()
            return True
    return False


def _number(loss: Any) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


def _bare_step(optimizer: Optimizer) -> None:
    """Step without torch's wrappers: hooks and profiler ranges are FOP's own, and a wrapper cuts a compiled graph."""
    inspect.unwrap(type(optimizer).step)(optimizer)


def _laid_out_as(p: Tensor, grad: Tensor) -> Tensor:
    """On a CPU torch's fused optimizers read memory from one end to the other, whatever the strides are."""
    return grad if grad.stride() == p.stride() else torch.empty_like(p).copy_(grad)


def _elsewhere(state: dict[str, Any], p: Tensor) -> bool:
    return any(isinstance(entry, Tensor) and entry.device != p.device for entry in state.values())


def _listed(group: dict[str, Any]) -> list[Any]:
    """A group's parameters, which may come from a generator."""
    if "params" not in group:
        raise ValueError(f"params: expected a group with 'params', got one with {', '.join(map(repr, group))}")
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("params: expected a list, got a set, whose order changes from run to run")
    return [params] if isinstance(params, Tensor) else list(params)


def _factor_dtype(p: Tensor) -> torch.dtype:
    # Small changes of M would be lost in half precision.
    return torch.float64 if p.dtype == torch.float64 else torch.float32
