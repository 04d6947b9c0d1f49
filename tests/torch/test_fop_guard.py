"""A number that is not finite: the step leaves no trace but a count, on the host's way and on the device's."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from fop_torch import FOP
from fop_torch.preconditioners import FORMS

KINDS = [*FORMS, "none"]
LR = 1e-3


def parameters(kind: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Two parameters of the form, and one that no preconditioner touches."""
    shapes = [(2, 1, 2, 2), (1, 2, 2, 2)] if kind == "spatial" else [(2, 3), (3, 2)]
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [*shapes, (2,)]]


def build(kind: str, params: list[Tensor], **options: Any) -> FOP:
    groups = [
        {"params": params[:2], "preconditioner": kind},
        {"params": params[2:], "preconditioner": "none"},
    ]
    return FOP(groups, **{"lr": LR, "hyper_lr": 0.01, **options})


def gradients(params: list[Tensor], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]


def feed(params: list[Tensor], grads: list[Tensor]) -> None:
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def train(params: list[Tensor], optimizer: FOP, steps: range) -> None:
    for step in steps:
        feed(params, gradients(params, step))
        optimizer.step()


def contents(params: list[Tensor], optimizer: FOP) -> dict[str, Any]:
    """Everything that a step may change, in memory of its own."""
    return copy.deepcopy({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()})


def unlike(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two nested structures differ, to the bit and to the dtype."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [at]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{at}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [where for key in a for where in unlike(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return [where for i, (x, y) in enumerate(zip(a, b, strict=True)) for where in unlike(x, y, f"{at}.{i}")]
    return [] if a == b else [at]


# ---------------------------------------------------------------------------------------- a step that leaves no trace


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_entry_anywhere_leaves_no_trace(kind: str, order: str, dtype: torch.dtype) -> None:
    params, twins = parameters(kind, dtype), parameters(kind, dtype)
    optimizer, twin = (build(kind, each, order=order, momentum=0.9) for each in (params, twins))
    values = itertools.cycle([math.nan, math.inf, -math.inf])
    entries = [(i, j) for i, p in enumerate(params) for j in range(p.numel())]
    skipped = 0
    # Before the first step, before the first hypergradient, later.
    for steps in (range(0), range(1), range(1, 3)):
        train(params, optimizer, steps)
        train(twins, twin, steps)
        before = contents(params, optimizer)
        for i, j in entries:
            bad = gradients(params, 77)
            bad[i].view(-1)[j] = next(values)
            feed(params, bad)
            if skipped == 0:
                with pytest.warns(RuntimeWarning, match="skipped a step.*not finite.*skipped_steps") as said:
                    optimizer.step()
                assert said[0].filename == __file__
            else:
                optimizer.step()  # a second warning would be an error
            skipped += 1
            assert all(p.grad is each for p, each in zip(params, bad, strict=True))
        assert unlike(contents(params, optimizer), before) == []
        assert optimizer.skipped_steps == skipped
    # Training goes on as if nothing had been.
    train(params, optimizer, range(3, 6))
    train(twins, twin, range(3, 6))
    assert unlike(contents(params, optimizer), contents(twins, twin)) == []
    assert optimizer.skipped_steps == skipped
    assert twin.skipped_steps == 0


@pytest.mark.parametrize("base", [SGD, Adam])
@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FORMS)
def test_a_hypergradient_that_overflows_leaves_no_trace(
    kind: str, dtype: torch.dtype, order: str, base: type[torch.optim.Optimizer]
) -> None:
    params = parameters(kind, dtype)
    optimizer = build(kind, params, order=order, base=base)
    train(params, optimizer, range(2))
    # Two gradients that are finite, but not the product of the two.
    first, second = (1e150, 1e200) if dtype == torch.float64 else (1e18, 1e30)
    for size in (first, second):
        before = contents(params, optimizer)
        grads = gradients(params, 3)
        for grad in grads[:2]:
            grad.view(-1)[0] = size
        feed(params, grads)
        if size == first:
            optimizer.step()
    assert optimizer.skipped_steps == 0
    with pytest.warns(RuntimeWarning, match="hypergradient"):
        optimizer.step()
    assert optimizer.skipped_steps == 1
    assert unlike(contents(params, optimizer), before) == []
    train(params, optimizer, range(2, 4))
    assert optimizer.skipped_steps == 1


def test_ignore_lets_it_in() -> None:
    params = parameters("dense")
    optimizer = build("dense", params, nonfinite="ignore")
    train(params, optimizer, range(2))
    bad = gradients(params, 2)
    bad[0][0, 0] = math.nan
    feed(params, bad)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert not params[0].isfinite().all()
    assert not optimizer.state[params[0]]["M"].isfinite().all()
    assert params[1].isfinite().all()


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("kind", FORMS)
def test_a_step_stays_within_the_range_of_half_precision(kind: str, order: str) -> None:
    params = parameters(kind, torch.float16)
    optimizer = build(kind, params, order=order, hyper_lr=0)
    for p in params[:2]:
        optimizer.state[p]["M"].fill_(3)
    for _ in range(2):
        # The largest number is 65504, and P is at least 3.
        feed(params, [torch.full_like(p, 3e4) for p in params])
        optimizer.step()
    assert all(p.isfinite().all() for p in params)


# --------------------------------------------------------------------------------------- the host's way, the device's

PLANS: dict[str, dict[str, Any]] = {
    "paper": {"momentum": 0.9},
    "exact": {"index": "exact", "base": Adam},
    "m-first": {"order": "m-first", "base": AdamW},
    "m-first, plain": {"order": "m-first", "hyper": SGD, "hyper_lr": 1.0},
    "m-first, momentum": {"order": "m-first", "hyper": SGD, "hyper_lr": 1.0, "hyper_options": {"momentum": 0.9}},
    "step": {"base": Adam, "through": "step", "index": "exact"},
    "velocity": {"through": "velocity", "momentum": 0.9, "hyper": SGD},
    "normalize": {"normalize": True, "order": "m-first"},
    "both orders": {"momentum": 0.9, "hyper": SGD, "hyper_lr": 1.0},
}
#: What may happen to a parameter's gradient in a step; `large` moves M too far, `huge` overflows.
EVENTS = {"good": 1.0, "large": 1e15, "huge": 1e30, "nan": math.nan, "absent": None}


def planned(plan: str) -> tuple[list[Tensor], FOP]:
    shapes = [(2, 3), (2, 2), (2,)]
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups: list[dict[str, Any]] = [{"params": params}]
    if plan == "both orders":
        groups = [{"params": params[:1], "index": "exact"}, {"params": params[1:], "order": "m-first"}]
    return params, FOP(groups, **{"lr": LR, "hyper_lr": 0.01, **PLANS[plan]})


def follow(plan: str, events: list[tuple[str, ...]], leave_out: set[int] = frozenset()) -> tuple[Any, set[int]]:  # type: ignore[assignment]
    """Run it; return the outcome and which steps were skipped. Steps that are left out never happen."""
    params, optimizer = planned(plan)
    skipped = set()
    for step, chosen in enumerate(events):
        for group in optimizer.param_groups:
            group["lr"] = LR / (1 + step)
        if step in leave_out:
            continue
        for p, grad, event in zip(params, gradients(params, step), chosen, strict=True):
            p.grad = None if event == "absent" else EVENTS[event] * grad
        count = optimizer.skipped_steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            optimizer.step()
        if optimizer.skipped_steps > count:
            skipped.add(step)
    return contents(params, optimizer), skipped


def force_the_devices_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the answer from the host, as a device does, as soon as all states exist."""
    answer = FOP._well

    def kept_back(self: FOP, buckets: Any, bare: Any) -> Any:
        well = answer(self, buckets, bare)
        return torch.tensor(well) if isinstance(well, bool) and self._settled(buckets, bare) else well

    monkeypatch.setattr(FOP, "_well", kept_back)


story = st.lists(st.tuples(*[st.sampled_from(list(EVENTS))] * 3), min_size=2, max_size=7)


@pytest.mark.parametrize("plan", PLANS)
@given(events=story)
def test_skipped_steps_never_happened(plan: str, events: list[tuple[str, ...]]) -> None:
    outcome, skipped = follow(plan, events)
    for step, chosen in enumerate(events):
        assert step in skipped or "nan" not in chosen
    again, none = follow(plan, events, leave_out=skipped)
    assert none == set()
    assert unlike(outcome, again) == []


@pytest.mark.parametrize("plan", PLANS)
@given(events=story)
def test_the_devices_way_ends_where_the_hosts_does(plan: str, events: list[tuple[str, ...]]) -> None:
    expected = follow(plan, events)
    with pytest.MonkeyPatch.context() as monkeypatch:
        force_the_devices_way(monkeypatch)
        outcome = follow(plan, events)
    assert outcome[1] == expected[1]
    assert unlike(outcome[0], expected[0]) == []


@pytest.mark.parametrize("plan", PLANS)
def test_the_devices_way_is_taken(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above compares the host's way with itself."""
    force_the_devices_way(monkeypatch)
    params, optimizer = planned(plan)
    train(params, optimizer, range(3))
    assert isinstance(optimizer._skipped, Tensor)
    feed(params, [math.nan * grad for grad in gradients(params, 3)])
    before = contents(params, optimizer)
    optimizer.step()  # no warning: the host doesn't know
    assert optimizer.skipped_steps == 1
    assert unlike(contents(params, optimizer), before) == []


@pytest.mark.parametrize(
    ("plan", "events"),
    [
        # A parameter without M whose first gradient is bad once the others have settled.
        ("paper", [("good", "good", "absent")] * 3 + [("good", "good", "nan"), ("good", "good", "good")]),
        # One that was absent remembers another learning rate than its neighbour.
        ("paper", [("good",) * 3] * 2 + [("good", "absent", "good"), ("nan", "good", "good"), ("good",) * 3]),
        # The first update of M goes too far, and the next gradient is bad.
        ("m-first, plain", [("good",) * 3, ("large",) * 3, ("nan",) * 3, ("good",) * 3]),
        ("m-first, momentum", [("good",) * 3, ("large",) * 3, ("nan",) * 3, ("good",) * 3]),
        # A group in the paper's order has taken its step when the other's M turns out too large.
        ("both orders", [("good",) * 3, ("good",) * 3, ("good", "large", "good"), ("good",) * 3]),
        ("both orders", [("absent", "good", "good"), ("good", "large", "good"), ("good",) * 3, ("good",) * 3]),
    ],
    ids=[
        "a late newcomer",
        "two learning rates",
        "the first update",
        "the first momentum",
        "both orders",
        "both orders, a newcomer",
    ],
)
def test_traces_that_are_easily_left(plan: str, events: list[tuple[str, ...]]) -> None:
    expected = follow(plan, events)
    assert expected[1]
    assert unlike(expected[0], follow(plan, events, leave_out=expected[1])[0]) == []
    with pytest.MonkeyPatch.context() as monkeypatch:
        force_the_devices_way(monkeypatch)
        outcome = follow(plan, events)
    assert outcome[1] == expected[1]
    assert unlike(outcome[0], expected[0]) == []


# -------------------------------------------------------------------------- scalers, closures, accumulation, clipping


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def batch(step: int) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(step))


def outcome(model: nn.Module, optimizer: FOP) -> dict[str, Any]:
    return contents(list(model.parameters()), optimizer)


def test_a_scaler_that_skips_a_step_leaves_no_trace() -> None:
    model, plain = network(), network()
    optimizer, twin = (FOP(each.parameters(), 0.1, momentum=0.9, hyper_lr=0.01) for each in (model, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        optimizer.zero_grad()
        loss = model(batch(step)).square().mean()
        before = outcome(model, optimizer)
        bad = step in (0, 3)
        scaler.scale(loss * (math.inf if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert unlike(outcome(model, optimizer), before) == []
            continue
        twin.zero_grad()
        plain(batch(step)).square().mean().backward()
        twin.step()
    assert optimizer.skipped_steps == 0  # it was never asked
    # A power of two scales without rounding: unscaled, the gradients are those of a run without a scaler.
    assert unlike(outcome(model, optimizer), outcome(plain, twin)) == []


def test_closures_run_with_gradients_and_their_value_is_returned() -> None:
    model, twin_model = network(), network()
    optimizer, twin = (FOP(each.parameters(), 0.1, momentum=0.9, hyper_lr=0.01) for each in (model, twin_model))
    calls = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = model(batch(len(calls))).square().mean()
        loss.backward()
        calls.append(loss)
        return loss

    for step in range(3):
        with torch.no_grad():
            assert optimizer.step(closure) is calls[-1]
        assert len(calls) == step + 1
        twin.zero_grad()
        twin_model(batch(step)).square().mean().backward()
        assert twin.step() is None
    assert unlike(outcome(model, optimizer), outcome(twin_model, twin)) == []


def test_a_closure_whose_gradients_are_bad_still_returns_its_value() -> None:
    model = network()
    optimizer = FOP(model.parameters(), 0.1)

    def closure() -> Tensor:
        loss = math.nan * model(batch(0)).mean()
        loss.backward()
        return loss

    with pytest.warns(RuntimeWarning, match="skipped"):
        assert optimizer.step(closure).isnan()


def test_the_hypergradient_sees_what_the_gradient_holds_at_the_step() -> None:
    """Accumulated over two batches and clipped: M moves by these, not by the raw or the single ones."""
    model, twin_model, raw_model = network(), network(), network()
    optimizer, twin, raw = (
        FOP(each.parameters(), 0.1, hyper=SGD, hyper_lr=0.1) for each in (model, twin_model, raw_model)
    )
    for step in range(4):
        for each, net in ((optimizer, model), (raw, raw_model)):
            each.zero_grad()
            for half in (2 * step, 2 * step + 1):
                net(batch(half)).square().mean().backward()
        raw.step()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        # The twin is handed the sum, clipped, as if one batch had given it.
        for p, q in zip(model.parameters(), twin_model.parameters(), strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone()
        twin.step()
        for p in model.parameters():
            if p.dim() > 1:
                assert torch.equal(optimizer.state[p]["prev_grad"], p.grad)
    assert unlike(outcome(model, optimizer), outcome(twin_model, twin)) == []
    clipped, unclipped = (each.state[each.param_groups[0]["params"][0]]["M"] for each in (optimizer, raw))
    assert (clipped - torch.eye(4)).norm() < 0.5 * (unclipped - torch.eye(4)).norm()
