"""The step on a CUDA device, seen without one: fake tensors say where each operation runs and what the host asks for.

A fake tensor has a shape and a device but no numbers, so an operation that needs a number on the host has to be
answered by the test: that is how a wait of the host for the device is seen.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fop_torch import FOP, PPHD, SHD, Recorder, fop, kernels
from fop_torch.preconditioners import FORMS, Dense

#: Operations that copy: between devices, the host waits for them, for none of FOP's memory is pinned.
COPIES = ("_to_copy", "copy_", "_foreach_copy_", "set_", "lift")
#: Operations of linear algebra that ask the device whether they succeeded.
CHECKED = ("_linalg_check_errors", "_linalg_eigh", "linalg_inv_ex", "_linalg_svd", "linalg_lu", "_linalg_solve_ex")


class Waited(Exception):  # noqa: N818 - an event, not an error
    """The host waited for the device."""


class Watch(TorchDispatchMode):
    """Sees every operation of a step.

    Args:
        strict: Raise when the host waits or a tensor lies on the CPU; else answer and count.
    """

    def __init__(self, strict: bool = True) -> None:
        super().__init__()
        self.strict = strict
        self.waits: list[str] = []
        self.on_host: list[Tensor] = []
        self.on_device = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace == "prim":  # on which device is it?
            return func(*args, **kwargs)
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if name == "_local_scalar_dense":
            if given[0].device.type == "cuda":
                self._wait(name)
            else:
                self._host(name, given)
            return True if given[0].dtype == torch.bool else 1.0
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags) or name in CHECKED:
            self._wait(name)
        if name.startswith("_fused_"):  # torch does not know how to fake all of them; they return nothing
            assert len({each.device for each in given}) == 1
            self.on_device += 1
            return None
        found = func(*args, **kwargs)
        tensors = given + [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        kinds = {each.device.type for each in tensors}
        if len(kinds) > 1 and name.startswith(COPIES):
            self._wait(f"{name}, {' and '.join(sorted(kinds))}")
        elif "cpu" in kinds:
            self._host(name, [each for each in tensors if each.device.type == "cpu"])
        self.on_device += kinds == {"cuda"}
        return found

    def _wait(self, name: str) -> None:
        if self.strict:
            raise Waited(name)
        self.waits.append(name)

    def _host(self, name: str, tensors: list[Tensor]) -> None:
        self.on_host += tensors
        if self.strict:
            raise AssertionError(f"{name}: a tensor on the CPU, of shapes {[list(each.shape) for each in tensors]}")


@pytest.fixture
def fakes() -> Iterator[None]:
    with FakeTensorMode():
        yield


def parameters(*shapes: tuple[int, ...], device: str = "cuda") -> list[Tensor]:
    return [nn.Parameter(torch.ones(shape, device=device)) for shape in shapes]


def step(params: list[Tensor], optimizer: Optimizer, strict: bool) -> Watch:
    for p in params:
        p.grad = torch.ones_like(p)
    with Watch(strict) as watch:
        optimizer.step()
    return watch


def settle_and_watch(params: list[Tensor], optimizer: Optimizer) -> None:
    """The first two steps make the states, and the host may look; from the third on it must not."""
    for _ in range(2):
        step(params, optimizer, strict=False)
    for _ in range(2):
        before = held(optimizer)
        assert step(params, optimizer, strict=True).on_device > 0
        after = held(optimizer)
        assert {each.device.type for each in after.values()} == {"cuda"}
        if all(group.get("capturable") for group in optimizer.param_groups):
            # A captured step is played again on the memory that it was captured with.
            assert [name for name in after if after[name] is not before[name]] == []


def held(optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of the state, by parameter and name."""
    entries = optimizer.state_dict()["state"].items()
    return {f"{i}.{key}": value for i, entry in entries for key, value in entry.items() if isinstance(value, Tensor)}


# -------------------------------------------------------------------------------------------------- does the watch see?

#: Of a tensor on the device and one on the host.
FAULTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "item": lambda x, host: x.sum().item(),
    "float": lambda x, host: float(x[0]),
    "bool": lambda x, host: bool((x > 0).all()),
    "tolist": lambda x, host: x[0].tolist(),
    "nonzero": lambda x, host: x.nonzero(),
    "mask": lambda x, host: x[x > 0],
    "unique": lambda x, host: x.unique(),
    "equal": lambda x, host: torch.equal(x, x),
    "to the host": lambda x, host: x.cpu(),
    "to the host, copied": lambda x, host: host.copy_(x),
    "to the device": lambda x, host: host.to("cuda"),
    "to the device, copied": lambda x, host: x.copy_(host),
    "to the device, all at once": lambda x, host: torch._foreach_copy_([x], [host]),
    "inverse": lambda x, host: torch.linalg.inv(x[:, None] * x),
}


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", FAULTS)
def test_the_watch_sees_a_wait(name: str) -> None:
    x, host = torch.ones(2, device="cuda"), torch.ones(2)
    with pytest.raises(Waited), Watch():
        FAULTS[name](x, host)


@pytest.mark.usefixtures("fakes")
def test_the_watch_sees_a_tensor_on_the_cpu() -> None:
    x, host = torch.ones(2, device="cuda"), torch.ones(())
    with pytest.raises(AssertionError, match="a tensor on the CPU"), Watch():
        x * host
    with pytest.raises(AssertionError, match="a tensor on the CPU"), Watch():
        torch.ones(3)


@pytest.mark.usefixtures("fakes")
def test_the_watch_sees_a_step_that_asks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FOP, "_settled", lambda self, buckets, bare: False)
    params = parameters((4, 3))
    with pytest.raises(Waited):
        settle_and_watch(params, FOP(params, 0.1))


# ------------------------------------------------------------------------------------------------------ no wait

SHAPES = {"spatial": [(4, 2, 3, 3), (4, 4, 3, 3)]}
#: Of all kinds that "auto" tells apart: 3 x 3 kernels of two sizes, 1 x 1, dense, low rank, none.
ALL = ((4, 2, 3, 3), (4, 4, 5, 5), (4, 4, 1, 1), (5, 8), (3, 200), (4,), ())


def waits(kind: str, variant: str) -> bool:
    """Does the form look whether there is anything to clip? As the table says."""
    return FORMS[kind].normalised and (variant == "max_norm" or FORMS[kind].bound is not None)


def variants(kind: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"plain": {}, "max_norm": {"max_norm": 2.0}}
    if isinstance(FORMS[kind], Dense):
        found |= {"normalize": {"normalize": True}, "constant norm": {"normalize": True, "through_norm": False}}
    if FORMS[kind].positive and not FORMS[kind].normalised:
        found["safe"] = {"safe": 0.5, "hyper": SGD}
    return found


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize(
    ("kind", "variant"),
    [(kind, variant) for kind in FORMS for variant in variants(kind) if not waits(kind, variant)],
)
def test_no_form_makes_the_host_wait(kind: str, variant: str, order: str) -> None:
    params = parameters(*SHAPES.get(kind, [(4, 3), (2, 5)]), (4,))
    groups = [{"params": params[:2], "preconditioner": kind}, {"params": params[2:], "preconditioner": "none"}]
    settle_and_watch(params, FOP(groups, 0.1, momentum=0.9, order=order, **variants(kind)[variant]))


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("kind", "variant"), [(kind, variant) for kind in FORMS for variant in variants(kind) if waits(kind, variant)]
)
def test_the_bounds_of_some_forms_wait(kind: str, variant: str) -> None:
    params = parameters((4, 3))
    optimizer = FOP(params, 0.1, preconditioner=kind)
    optimizer.param_groups[0].update(variants(kind)[variant])  # not when it is built, which may wait
    with pytest.raises(Waited):
        settle_and_watch(params, optimizer)


OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "momentum": {"momentum": 0.9},
    "momentum, foreach": {"momentum": 0.9, "foreach": True},
    "momentum, one by one": {"momentum": 0.9, "foreach": False},
    "nesterov, decayed": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "through": "step"},
    "velocity": {"momentum": 0.9, "through": "velocity"},
    "exact": {"momentum": 0.9, "index": "exact"},
    "ignore": {"momentum": 0.9, "nonfinite": "ignore"},
    "momentum, M by SGD": {"momentum": 0.9, "hyper": SGD},
    "momentum, M by RMSprop": {"momentum": 0.9, "hyper": RMSprop, "hyper_options": {"capturable": True}},
    "Adam, capturable": {"base": Adam, "capturable": True},
    "Adam, capturable, its step": {"base": Adam, "capturable": True, "through": "step", "index": "exact"},
    "Adam, fused": {"base": Adam, "fused": True},
    "Adam, fused, its step": {"base": Adam, "fused": True, "through": "step", "order": "m-first"},
    "AdamW, capturable, one by one": {"base": AdamW, "capturable": True, "foreach": False, "order": "m-first"},
}


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", OPTIONS)
def test_no_base_makes_the_host_wait(name: str) -> None:
    params = parameters(*ALL)
    settle_and_watch(params, FOP(params, 0.1, **OPTIONS[name]))


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", [name for name, options in OPTIONS.items() if options.get("base")])
def test_no_learning_rate_on_the_device_makes_the_host_wait(name: str) -> None:
    """Torch's SGD reads such a learning rate in each step; its Adam doesn't."""
    params = parameters(*ALL)
    optimizer = FOP(params, 0.1, **OPTIONS[name])
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), 0.1, device="cuda")
    settle_and_watch(params, optimizer)
    used = [optimizer.state[p]["prev_lr"] for p in params if "M" in optimizer.state.get(p, {})]
    assert {each.device.type for each in used} == {"cuda"}
    assert all(each is not group["lr"] for each in used for group in optimizer.param_groups)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("baseline", [SHD, PPHD])
def test_no_baseline_makes_the_host_wait(baseline: type[FOP]) -> None:
    params = parameters(*ALL)
    settle_and_watch(params, baseline(params, 0.1, momentum=0.9))


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_no_dtype_makes_the_host_wait(dtype: torch.dtype) -> None:
    params: list[Tensor] = [nn.Parameter(torch.ones(shape, device="cuda", dtype=dtype)) for shape in ALL]
    settle_and_watch(params, FOP(params, 0.1, momentum=0.9))


@pytest.mark.usefixtures("fakes")
def test_the_recorder_does_not_make_the_host_wait() -> None:
    params = parameters(*ALL)
    optimizer = FOP(params, 0.1, momentum=0.9)
    recorder = Recorder(optimizer, every=1)
    settle_and_watch(params, optimizer)
    assert {number for number, _, _ in recorder._records} == {1, 2, 3, 4}


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    "options",
    [{"base": Adam}, {"base": Adam, "through": "step", "index": "exact"}, {"hyper": RMSprop}],
    ids=str,
)
def test_a_count_on_the_host_costs_one_wait(options: dict[str, Any]) -> None:
    """Torch keeps some counts of steps on the host; then the host must know whether a step is taken."""
    params = parameters(*ALL, (100, 100), (100, 120))
    optimizer = FOP(params, 0.1, **options)
    for _ in range(2):
        step(params, optimizer, strict=False)
    for _ in range(2):
        watch = step(params, optimizer, strict=False)
        assert watch.waits == ["_local_scalar_dense"]
        assert {each.dim() for each in watch.on_host} == {0}


@pytest.mark.usefixtures("fakes")
def test_a_learning_rate_on_the_host_is_not_copied() -> None:
    params = parameters(*ALL)
    optimizer = FOP(params, 0.1, momentum=0.9)
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), 0.1)
    for _ in range(2):
        step(params, optimizer, strict=False)
    watch = step(params, optimizer, strict=False)
    assert watch.waits == []
    assert {each.dim() for each in watch.on_host} == {0}
    assert optimizer.state[params[0]]["prev_lr"].device.type == "cuda"


# -------------------------------------------------------------------------------------------------- a model that moves


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tensor.data = elsewhere` moves a tensor, and so `model.to(device)` does; a fake tensor forgets to."""

    def put(tensor: Any, value: Any) -> None:
        Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]
        tensor.fake_device = value.fake_device

    monkeypatch.setattr(FakeTensor, "data", property(Tensor.data.__get__, put), raising=False)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("fakes", "moving")
@pytest.mark.parametrize("trained", [0, 3])
def test_factors_follow_a_model_that_moves(trained: int) -> None:
    params = parameters(*ALL, device="cpu")
    # Without momentum: torch's own states do not follow.
    optimizer = FOP(params, 0.1, index="exact")
    for _ in range(trained):
        for p in params:
            p.grad = torch.ones_like(p)
        with Answers():
            optimizer.step()
    factors = [optimizer.state[p]["M"] for p in params if "M" in optimizer.state.get(p, {})]
    assert {M.device.type for M in factors} == {"cpu"}
    for p in params:
        p.grad = None
        p.data = p.data.to("cuda")
    settle_and_watch(params, optimizer)
    assert {M.device.type for M in factors} == {"cuda"}  # the same tensors: those that the hyper-optimizer moves
    assert optimizer.hyper is not None
    moved = [M for group in optimizer.hyper.param_groups for M in group["params"]]
    assert list(map(id, moved)) == list(map(id, factors))


class Answers(TorchDispatchMode):
    """Steps on a fake CPU, where the host may look at every number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 1.0 if func.overloadpacket.__name__ == "_local_scalar_dense" else func(*args, **(kwargs or {}))


# ------------------------------------------------------------------------------------------------- capture and replay


class Tape(TorchDispatchMode):
    """What a CUDA graph is: the operations of one step, played again on the same memory.

    Python does not run again at a replay: what a step keeps in a new tensor, instead of in the old one's memory, is
    lost to the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, found in self.operations:
            returns = [each.alias_info for each in func._schema.returns]
            if any(info is not None and not info.is_write for info in returns):
                continue  # a view of memory: it still is
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


CAPTURABLE: dict[str, dict[str, Any]] = {
    "Adam": {"base": Adam},
    "Adam, one by one": {"base": Adam, "foreach": False},
    "AdamW, M first": {"base": AdamW, "order": "m-first"},
    "exact": {"base": Adam, "index": "exact"},
    "normalize": {"base": Adam, "normalize": True, "preconditioner": "dense"},
    "safe": {"base": Adam, "safe": 0.5, "hyper": SGD},
    "max_norm": {"base": Adam, "max_norm": 1.01},
    "ignore": {"base": Adam, "nonfinite": "ignore"},
}


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: torch allows `capturable`, FOP keeps the answer of its check from the host, and uses no library."""
    monkeypatch.setattr(kernels, "library", None)
    monkeypatch.setattr(
        sys.modules[Adam.__module__], "_get_capturable_supported_devices", lambda *args, **kwargs: ["cpu"]
    )
    sizes: list[Tensor] = []
    answer, total_sizes = FOP._well, fop.total_sizes

    def seen(*args: Any) -> list[Tensor]:
        sizes[:] = total_sizes(*args)
        return list(sizes)

    def kept_back(self: FOP, buckets: Any, bare: Any) -> Any:
        well = answer(self, buckets, bare)
        return fop.finite(sizes) if well is not None and self._settled(buckets, bare) else well

    monkeypatch.setattr(fop, "total_sizes", seen)
    monkeypatch.setattr(FOP, "_well", kept_back)


WARM_UP, STEPS = 3, 9  # the tape is made at the step after the warm-up


def feed(params: list[Tensor], number: int, bad: bool) -> None:
    """The gradients of a step, in the memory of those before."""
    generator = torch.Generator().manual_seed(number)
    for p in params:
        new = torch.randn(p.shape, generator=generator)
        if p.grad is None:
            p.grad = new
        else:
            p.grad.copy_(new)
    if bad:
        assert params[0].grad is not None
        params[0].grad.view(-1)[0] = math.nan


def start(options: dict[str, Any]) -> tuple[list[Tensor], FOP, Tensor]:
    params = parameters((2, 2, 3, 3), (3, 4), (2, 130), (3,), device="cpu")
    optimizer = FOP(params, 0.1, hyper_lr=0.01, capturable=True, **options)
    lr = torch.full((), 0.1)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return params, optimizer, lr


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_captured_step_goes_the_same_way(name: str) -> None:
    options = CAPTURABLE[name]
    bad = set() if options.get("nonfinite") else {6}
    params, optimizer, lr = start(options)
    twins, twin, twin_lr = start(options)
    tape = Tape()
    for number in range(STEPS):
        for rate, owned in ((lr, params), (twin_lr, twins)):
            rate.fill_(0.1 / (1 + number))
            feed(owned, number, number in bad)
        twin.step()
        if number < WARM_UP:
            optimizer.step()
        elif number == WARM_UP:
            with tape:
                optimizer.step()
        else:
            tape.replay()
    assert optimizer.hyper is not None
    assert all(group.get("capturable", True) for group in optimizer.hyper.param_groups)
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
    states, twin_states = held(optimizer), held(twin)
    assert [name for name in states if not torch.equal(states[name], twin_states[name])] == []
    assert optimizer.skipped_steps == twin.skipped_steps == len(bad)
