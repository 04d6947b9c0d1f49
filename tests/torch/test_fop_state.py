"""Checkpoints: a fresh process goes on to the last bit, a bad one changes nothing; memory is what the formula says."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    lr_scheduler,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fop_torch import FOP, PPHD, SHD

ROOT = Path(__file__).parents[2]
STOPS = (0, 1, 2, 7)
MORE = 3  # steps after each checkpoint
GROUP_ADDED_AT = 4
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

CASES: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "adam": {"base": Adam},
    "adamw, m-first": {"base": AdamW, "order": "m-first", "hyper": RMSprop},
    "exact": {"index": "exact", "hyper": SGD, "hyper_options": {"momentum": 0.5}},
    "exact, step of adam": {"base": Adam, "through": "step", "index": "exact", "hyper_lr": 1e-3},
    "step of nesterov": {"through": "step", "momentum": 0.9, "nesterov": True},
    "velocity": {"through": "velocity", "momentum": 0.9, "weight_decay": 0.01},
    "normalize": {"normalize": True, "momentum": 0.9, "preconditioner": "dense"},
    "normalize, low rank": {"normalize": True, "through_norm": False, "preconditioner": "low_rank", "rank": 1},
    "diagonal": {"preconditioner": "diagonal", "max_norm": 1.001},
    "scalar, safe": {"preconditioner": "scalar", "hyper": SGD, "safe": 0.5, "hyper_lr": 0.1},
    "exponential": {"preconditioner": "exponential", "hyper": SGD, "max_norm": 1.01},
    "linear": {"preconditioner": "linear", "hyper": SGD, "order": "m-first", "momentum": 0.9},
    "s-hd": {"optimizer": SHD, "momentum": 0.9},
    "pp-hd": {"optimizer": PPHD, "base": RMSprop},
    "group added later": {"momentum": 0.9, "late": True},
}


def parameters(dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """One parameter of each kind that "auto" tells apart."""
    shapes = {"conv": (3, 2, 3, 3), "wide": (2, 130), "dense": (4, 5), "bias": (4,), "scale": ()}
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


def build(name: str, dtype: torch.dtype, seed: int = 0, stop: int = 0) -> tuple[dict[str, Tensor], Optimizer]:
    options = {"hyper_lr": 0.01, "lr": 0.05, "seed": seed, **CASES[name]}
    optimizer_class, late = options.pop("optimizer", FOP), options.pop("late", False)
    params = parameters(dtype, seed)
    optimizer = optimizer_class(params.items(), **options)
    if late and stop > GROUP_ADDED_AT:
        add_late(params, optimizer, seed)
    return params, optimizer


def add_late(params: dict[str, Tensor], optimizer: Optimizer, seed: int = 0) -> None:
    params["late"] = nn.Parameter(
        torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)).to(params["conv"].dtype)
    )
    optimizer.add_param_group({
        "params": [("late", params["late"])], "preconditioner": "low_rank", "rank": 2, "order": "m-first", "lr": 0.02,
    })  # fmt: skip


def train(params: dict[str, Tensor], optimizer: Optimizer, steps: range, late: bool = False) -> None:
    """Gradients that depend on the parameters, so that a difference stays; a learning rate that changes each step."""
    for step in steps:
        if late and step == GROUP_ADDED_AT:
            add_late(params, optimizer)
        for i, p in enumerate(params.values()):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
            p.grad = (0.5 * p.detach() + noise.to(p.dtype)).detach()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9


def packed(params: dict[str, Tensor], optimizer: Optimizer) -> dict[str, Any]:
    return {"model": {name: p.detach() for name, p in params.items()}, "optimizer": optimizer.state_dict()}


def kept(params: dict[str, Tensor], optimizer: Optimizer) -> dict[str, Any]:
    """What `packed` gives, in memory of its own."""
    return copy.deepcopy(packed(params, optimizer))


def unlike(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two nested structures differ, to the bit and to the dtype."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.device == b.device and torch.equal(a, b)
        return [] if same else [at]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{at}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [where for key in a for where in unlike(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{at}: length"]
        return [where for i, (x, y) in enumerate(zip(a, b, strict=True)) for where in unlike(x, y, f"{at}.{i}")]
    return [] if type(a) is type(b) and a == b else [at]


def resume(folder: Path) -> None:
    """The fresh process: it builds everything from another seed, loads with torch's defaults and goes on."""
    done = 0
    for path in sorted(folder.glob("*.before")):
        name, kind, stop = path.stem.split("__")
        params, optimizer = build(name, DTYPES[kind], seed=99, stop=int(stop))
        checkpoint = torch.load(path)
        for key, p in params.items():
            p.data.copy_(checkpoint["model"][key])
        optimizer.load_state_dict(checkpoint["optimizer"])
        # The group that comes later must find the seed of the first process.
        optimizer._seed = 0  # type: ignore[attr-defined]
        late = CASES[name].get("late", False)
        train(params, optimizer, range(int(stop), int(stop) + MORE), late)
        torch.save(packed(params, optimizer), path.with_suffix(".after"))
        done += 1
    print(f"resumed {done}")


def test_a_fresh_process_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    expected = {}
    for name, options in CASES.items():
        for kind, dtype in DTYPES.items():
            params, optimizer = build(name, dtype)
            saved: dict[int, dict[str, Any]] = {}
            for step in range(max(STOPS) + MORE + 1):
                if step in STOPS:
                    torch.save(packed(params, optimizer), tmp_path / f"{name}__{kind}__{step}.before")
                if step - MORE in STOPS:
                    saved[step - MORE] = kept(params, optimizer)
                train(params, optimizer, range(step, step + 1), options.get("late", False))
            expected |= {f"{name}__{kind}__{stop}": after for stop, after in saved.items()}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.torch.test_fop_state", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"resumed {len(CASES) * len(DTYPES) * len(STOPS)}\n"
    wrong = {
        key: differences
        for key, after in expected.items()
        if (differences := unlike(torch.load(tmp_path / f"{key}.after"), after))
    }
    assert wrong == {}


# ------------------------------------------------------------------------ the three traps of Optimizer.load_state_dict


def test_factors_of_half_precision_parameters_stay_float32() -> None:
    params, optimizer = build("adam", torch.bfloat16)
    train(params, optimizer, range(3))
    state = optimizer.state[params["dense"]]
    state["M"].fill_(1.001)  # the nearest bfloat16 is 1
    fresh_params, fresh = build("adam", torch.bfloat16, seed=5)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    loaded = fresh.state[fresh_params["dense"]]
    assert loaded["M"].dtype == torch.float32
    assert torch.equal(loaded["M"], state["M"])
    assert loaded["prev_grad"].dtype == torch.bfloat16
    assert fresh.hyper is not None
    assert {value.dtype for value in fresh.hyper.state[loaded["M"]].values()} == {torch.float32}


EVERY: dict[type[Optimizer], dict[str, Any]] = {
    SGD: {"momentum": 0.9}, Adam: {}, AdamW: {}, Adamax: {}, NAdam: {}, RAdam: {}, RMSprop: {"centered": True},
    Adagrad: {}, Adadelta: {}, Adafactor: {}, ASGD: {}, Rprop: {}, Muon: {},
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("side", ["base", "hyper"])
@pytest.mark.parametrize("optimizer_class", EVERY, ids=lambda each: each.__name__)
def test_no_number_of_any_optimizer_changes_its_type(
    optimizer_class: type[Optimizer], side: str, dtype: torch.dtype
) -> None:
    """Torch casts floats to the parameter's dtype and whole numbers to floats, unless they are called "step"."""
    options = EVERY[optimizer_class]
    given: dict[str, Any] = (
        {"base": optimizer_class, **options} if side == "base" else {"hyper": optimizer_class, "hyper_options": options}
    )

    def make() -> tuple[dict[str, Tensor], FOP]:
        # Muon takes matrices only.
        params = {"a": nn.Parameter(torch.ones(3, 4, dtype=dtype)), "b": nn.Parameter(torch.ones(2, 5, dtype=dtype))}
        return params, FOP(params.items(), 0.01, preconditioner="dense", **given)

    params, optimizer = make()
    train(params, optimizer, range(3))
    fresh_params, fresh = make()
    for name, p in fresh_params.items():
        p.data.copy_(params[name].data)
    fresh.load_state_dict(kept(params, optimizer)["optimizer"])
    assert unlike(fresh.state_dict(), optimizer.state_dict()) == []
    train(params, optimizer, range(3, 5))
    train(fresh_params, fresh, range(3, 5))
    assert unlike(packed(fresh_params, fresh), packed(params, optimizer)) == []


@pytest.mark.parametrize("name", CASES)
def test_state_holds_tensors_and_numbers_alone(name: str) -> None:
    params, optimizer = build(name, torch.float32)
    train(params, optimizer, range(2))
    entries = optimizer.state_dict()["state"].values()
    assert {type(value) for entry in entries for value in entry.values()} <= {Tensor, int, float}
    assert all(isinstance(kind, str) for group in optimizer.state_dict()["param_groups"] for kind in group["forms"])


# -------------------------------------------------------------------------------------------------- copies and moves


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("stop", [0, 1, 3])
@pytest.mark.parametrize("name", ["exact, step of adam", "velocity", "normalize, low rank", "group added later"])
def test_copies_of_model_and_optimizer_go_on_alone(name: str, stop: int, way: str) -> None:
    params, optimizer = build(name, torch.float32)
    train(params, optimizer, range(stop))
    params["conv"].grad = math.nan * params["conv"].detach()
    with pytest.warns(RuntimeWarning, match="skipped"):
        optimizer.step()
    both = (params, optimizer)
    twins, twin = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
    before = kept(params, optimizer)
    late = "later" in name
    train(twins, twin, range(stop, 6), late)
    assert unlike(packed(params, optimizer), before) == []  # the copy shares no memory
    assert twin.base.param_groups is twin.param_groups
    assert twin.skipped_steps == optimizer.skipped_steps == 1
    train(params, optimizer, range(stop, 6), late)
    assert unlike(packed(params, optimizer), packed(twins, twin)) == []


def test_state_goes_where_the_parameters_are() -> None:
    params, optimizer = build("momentum", torch.float32)
    train(params, optimizer, range(2))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    moved = {name: nn.Parameter(p.detach().to("meta")) for name, p in params.items()}
    fresh = FOP(moved.items(), 0.05, momentum=0.9)
    fresh.load_state_dict(torch.load(buffer, map_location="cpu"))
    for entry in fresh.state_dict()["state"].values():
        # torch may keep the count of steps on the host.
        assert {value.device.type for key, value in entry.items() if key != "hyper_step"} == {"meta"}
    assert fresh.hyper is not None
    ours = {id(fresh.state[p]["M"]) for p in moved.values() if p in fresh.state}
    assert {id(M) for group in fresh.hyper.param_groups for M in group["params"]} == ours


def test_a_checkpoint_survives_the_run_that_goes_on() -> None:
    params, optimizer = build("momentum", torch.float32)
    train(params, optimizer, range(2))
    checkpoint = kept(params, optimizer)["optimizer"]
    same = copy.deepcopy(checkpoint)
    fresh_params, fresh = build("momentum", torch.float32)
    fresh.load_state_dict(checkpoint)
    train(fresh_params, fresh, range(2, 5))
    assert unlike(checkpoint, same) == []


def test_looking_changes_nothing() -> None:
    params, optimizer = build("adam", torch.float32)
    twins, twin = build("adam", torch.float32)
    for each, them in ((optimizer, params), (twin, twins)):
        train(them, each, range(2))
    used, base_keys = optimizer.memory_usage(), [sorted(entry) for entry in optimizer.base.state.values()]
    optimizer.state_dict()
    optimizer.describe()
    optimizer.preconditioners()
    assert optimizer.state[params["bias"]] == {}  # a parameter without M
    assert optimizer.memory_usage() == used
    assert [sorted(entry) for entry in optimizer.base.state.values()] == base_keys
    for each, them in ((optimizer, params), (twin, twins)):
        add_late(them, each)
        train(them, each, range(2, 4))
    assert unlike(packed(params, optimizer), packed(twins, twin)) == []


# --------------------------------------------------------------------------------------------- schedules and hooks

SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=6),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


def scheduled(
    params: dict[str, Tensor], optimizer: Optimizer, schedule: Any, steps: range
) -> list[tuple[float, float | None]]:
    seen = []
    for step in steps:
        for i, p in enumerate(params.values()):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
            p.grad = (0.5 * p.detach() + noise).detach()
        optimizer.step()
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0].get("momentum")))
        # A loss that doesn't fall from step 3 on.
        schedule.step(*([float(max(3 - step, 0))] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))
    return seen


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rule_the_learning_rate_and_nothing_else(name: str) -> None:
    make = SCHEDULES[name]
    params, plain_params = parameters(torch.float32), parameters(torch.float32)
    # M frozen at I: FOP is the base, to the bit, whatever the schedule does.
    optimizer = FOP(params.values(), 0.05, momentum=0.9, hyper_lr=0, preconditioner="diagonal")
    plain = SGD(plain_params.values(), 0.05, momentum=0.9)
    seen = scheduled(params, optimizer, make(optimizer), range(9))
    assert seen == scheduled(plain_params, plain, make(plain), range(9))
    assert len({lr for lr, _ in seen}) > 2
    assert (len({momentum for _, momentum in seen}) > 2) == (name == "one cycle")
    assert unlike(list(params.values()), list(plain_params.values())) == []
    assert all(torch.equal(optimizer.state[p]["M"], torch.ones_like(p)) for p in params.values())


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_resume(name: str) -> None:
    params, optimizer = build("exact", torch.float32)
    if name == "one cycle":
        params, optimizer = build("velocity", torch.float32)
    schedule = SCHEDULES[name](optimizer)
    scheduled(params, optimizer, schedule, range(5))
    saved = copy.deepcopy((packed(params, optimizer), schedule.state_dict()))
    scheduled(params, optimizer, schedule, range(5, 9))

    fresh_params, fresh = build("velocity" if name == "one cycle" else "exact", torch.float32, seed=3)
    fresh_schedule = SCHEDULES[name](fresh)
    for key, p in fresh_params.items():
        p.data.copy_(saved[0]["model"][key])
    fresh.load_state_dict(saved[0]["optimizer"])
    fresh_schedule.load_state_dict(saved[1])
    scheduled(fresh_params, fresh, fresh_schedule, range(5, 9))
    assert unlike(packed(fresh_params, fresh), packed(params, optimizer)) == []


def test_hooks_are_called_once() -> None:
    params, optimizer = build("adam", torch.float32)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("step pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("step post"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("state pre"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("state post"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("load post"))
    train(params, optimizer, range(2))
    assert calls == ["step pre", "step post"] * 2
    calls.clear()
    checkpoint = optimizer.state_dict()
    assert calls == ["state pre", "state post"]
    calls.clear()
    optimizer.load_state_dict(checkpoint)
    assert calls == ["load pre", "load post"]


def test_global_hooks_see_fop_once_a_step() -> None:
    seen: list[str] = []
    handle = register_optimizer_step_pre_hook(lambda each, *_: seen.append(type(each).__name__))
    try:
        train(*build("adam", torch.float32), range(1))
    finally:
        handle.remove()
    assert seen.count("FOP") == 1


def test_hooks_may_replace_what_is_saved_and_loaded() -> None:
    params, optimizer = build("momentum", torch.float32)
    train(params, optimizer, range(2))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "note": 7})
    checkpoint = copy.deepcopy(optimizer.state_dict())
    assert checkpoint["note"] == 7

    fresh_params, fresh = build("momentum", torch.float32, seed=1)
    fresh.register_load_state_dict_pre_hook(
        lambda _, saved: {**saved, "param_groups": [{**group, "hyper_lr": 0.5} for group in saved["param_groups"]]}
    )
    fresh.load_state_dict(checkpoint)
    assert fresh.param_groups[0]["hyper_lr"] == 0.5
    assert unlike(fresh.state[fresh_params["conv"]], optimizer.state[params["conv"]]) == []


# ------------------------------------------------------------------------------------------- other people's checkpoints


@pytest.mark.parametrize("base", [SGD, Adam])
def test_a_checkpoint_of_the_base_alone_loads(base: type[Optimizer]) -> None:
    options = {"momentum": 0.9} if base is SGD else {}
    plain_params = parameters(torch.float32)
    plain = base(plain_params.values(), lr=0.05, **options)
    train(plain_params, plain, range(3))
    params = parameters(torch.float32)
    optimizer = FOP(params.values(), 0.3, base=base, hyper_lr=0, preconditioner="diagonal", **options)
    for name, p in params.items():
        p.data.copy_(plain_params[name].data)
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["hyper_lr"] == 0  # what the checkpoint doesn't say stays
    # With M = I the run goes on as the base's would have.
    train(plain_params, plain, range(3, 6))
    train(params, optimizer, range(3, 6))
    assert unlike(list(params.values()), list(plain_params.values())) == []


@pytest.mark.parametrize(
    ("saved", "built"),
    [
        ({"preconditioner": "low_rank"}, {"preconditioner": "low_rank", "rank": 1}),
        ({"preconditioner": "low_rank", "rank": 1}, {"preconditioner": "low_rank"}),
        ({"preconditioner": "low_rank"}, {"preconditioner": "diagonal"}),
        ({"preconditioner": "dense"}, {"preconditioner": "none"}),
        ({"preconditioner": "none"}, {"preconditioner": "dense"}),
        ({"preconditioner": "s-hd"}, {"preconditioner": "scalar"}),
    ],
    ids=lambda options: " ".join(str(each) for each in options.values()),
)
def test_form_and_rank_follow_the_checkpoint(saved: dict[str, Any], built: dict[str, Any]) -> None:
    params, fresh_params = parameters(torch.float32), parameters(torch.float32, seed=1)
    optimizer = FOP(params.items(), 0.05, hyper_lr=0.01, **saved)
    train(params, optimizer, range(3))
    fresh = FOP(fresh_params.items(), 0.05, **built)
    checkpoint = kept(params, optimizer)
    for name, p in fresh_params.items():
        p.data.copy_(checkpoint["model"][name])
    fresh.load_state_dict(checkpoint["optimizer"])
    assert fresh.describe() == optimizer.describe()
    assert fresh.memory_usage() == optimizer.memory_usage()
    train(params, optimizer, range(3, 6))
    train(fresh_params, fresh, range(3, 6))
    assert unlike(packed(fresh_params, fresh), packed(params, optimizer)) == []


# ------------------------------------------------------------------------------------------------- bad checkpoints

Saved = dict[str, Any]


def _entry(saved: Saved, key: str, value: Any) -> Saved:
    """Another value in the state of the first parameter, the convolution's."""
    saved["state"][0][key] = value
    return saved


def _without(saved: Saved, key: str) -> Saved:
    del saved["state"][0][key]
    return saved


def _group(saved: Saved, **changes: Any) -> Saved:
    saved["param_groups"][0] |= changes
    return saved


def _other(saved: Saved, **options: Any) -> Saved:
    params = parameters(torch.float32)
    optimizer = FOP(params.items(), 0.05, **options)
    train(params, optimizer, range(3))
    return optimizer.state_dict()


BAD: dict[str, tuple[Callable[[Saved], Any], str]] = {
    "a group too few": (lambda saved: {**saved, "param_groups": []}, "group"),
    "a group too many": (lambda saved: {**saved, "param_groups": saved["param_groups"] * 2}, "group"),
    "a parameter too few": (lambda saved: _group(saved, params=[0, 1, 2, 3]), "group"),
    "prev_grad of another shape": (lambda saved: _entry(saved, "prev_grad", torch.ones(3, 2, 5, 5)), r"3, 2, 5, 5"),
    "M of another width": (lambda saved: _entry(saved, "M", torch.eye(25)), r"M.*25, 25"),
    "M of one dimension": (lambda saved: _entry(saved, "M", torch.ones(9)), r"M.*\[9\]"),
    "base's entry of another shape": (lambda saved: _entry(saved, "momentum_buffer", torch.ones(7)), r"buffer.*\[7\]"),
    "hyper's entry of another shape": (lambda saved: _entry(saved, "hyper_exp_avg", torch.ones(25, 25)), "25, 25"),
    "no M": (lambda saved: _without(saved, "M"), "M"),
    "no prev_grad": (lambda saved: _without(saved, "prev_grad"), "prev_grad"),
    "no prev_lr": (lambda saved: _without(saved, "prev_lr"), "prev_lr"),
    "M no tensor": (lambda saved: _entry(saved, "M", "eye"), "M.*eye"),
    "no param_groups": (lambda saved: {"state": saved["state"]}, "param_groups"),
    "no state": (lambda saved: {"param_groups": saved["param_groups"]}, "state"),
    "the model's": (lambda saved: {"conv": torch.ones(3, 2, 3, 3)}, "param_groups"),
    "a list": (lambda saved: [saved], "list"),
    "nothing": (lambda saved: None, "None"),
    "an unknown form": (lambda saved: _group(saved, forms=["spatail"] * 5), "spatail"),
    "a form that doesn't fit": (lambda saved: _group(saved, forms=["spatial"] * 5), "spatial"),
    "a form too few": (lambda saved: _group(saved, forms=["spatial"]), "forms"),
    "an option out of range": (lambda saved: _group(saved, order="M-first"), "order.*M-first"),
    "another hyper-optimizer": (lambda saved: _other(saved, momentum=0.9, hyper=SGD), "hyper.*SGD"),
    "another hyper-optimizer with state": (
        lambda saved: _other(saved, momentum=0.9, hyper=SGD, hyper_options={"momentum": 0.9}), "hyper.*SGD"
    ),
    "another base": (lambda saved: _other(saved, base=Adam), "base.*Adam"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_changes_nothing(name: str) -> None:
    spoil, message = BAD[name]
    params, optimizer = build("momentum", torch.float32)
    twins, twin = build("momentum", torch.float32)
    train(params, optimizer, range(3))
    train(twins, twin, range(3))
    before = kept(params, optimizer)
    identities = [id(optimizer.state[p]["M"]) for p in params.values() if "M" in optimizer.state.get(p, {})]
    with pytest.raises((ValueError, TypeError), match=re.compile(message, re.DOTALL)):
        optimizer.load_state_dict(spoil(kept(params, optimizer)["optimizer"]))
    assert unlike(packed(params, optimizer), before) == []
    assert identities == [id(optimizer.state[p]["M"]) for p in params.values() if "M" in optimizer.state.get(p, {})]
    # And it goes on as if nothing had been tried.
    train(params, optimizer, range(3, 6))
    train(twins, twin, range(3, 6))
    assert unlike(packed(params, optimizer), packed(twins, twin)) == []


# --------------------------------------------------------------------------------------------------------- memory


def test_bytes_of_state_are_what_the_formula_says() -> None:
    params, optimizer = build("momentum", torch.float32)
    assert isinstance(optimizer, FOP)
    train(params, optimizer, range(3))
    size = 4  # bytes of a float32
    with_factor = sum(params[name].numel() for name in ("conv", "wide", "dense"))
    entries = 9 * 9 + 130 * 16 + 5 * 5
    assert optimizer.memory_usage() == {
        "base": size * sum(p.numel() for p in params.values()),  # momentum
        "M": size * entries,
        "previous": size * with_factor,  # one copy of the gradient
        "hyper": size * (2 * entries + 3),  # Adam's two moments and its counts
    }
    # The same from what a checkpoint holds; the last learning rate, a number a parameter, comes on top.
    held = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    assert (
        sum(value.numel() * value.element_size() for value in held) == sum(optimizer.memory_usage().values()) + 3 * size
    )


@pytest.mark.parametrize(
    ("options", "copies", "factors"),
    [
        ({}, 1, 1),
        ({"index": "exact"}, 1, 2),  # M that made the last step
        ({"base": Adam, "through": "step", "index": "exact"}, 2, 2),  # and Adam's derivative
        ({"through": "velocity", "momentum": 0.9}, 1, 1),
        ({"normalize": True}, 1, 1),
    ],
    ids=str,
)
def test_copies_of_the_gradient_and_of_the_factor(options: dict[str, Any], copies: int, factors: int) -> None:
    p = nn.Parameter(torch.ones(6, 4))
    optimizer = FOP([p], 0.1, preconditioner="dense", **options)
    train({"p": p}, optimizer, range(3))
    own = [value.numel() for key, value in optimizer.state[p].items() if key != "prev_lr"]
    assert sum(own) == copies * p.numel() + factors * 4 * 4
    used = optimizer.memory_usage()
    assert used["M"] + used["previous"] == 4 * sum(own)


def alive() -> tuple[int, int]:
    """Number and bytes of the tensors in memory."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
    return len(tensors), sum(each.numel() * each.element_size() for each in tensors)


@pytest.mark.parametrize("name", ["momentum", "exact, step of adam"])
def test_memory_is_flat_over_500_steps(name: str) -> None:
    params, optimizer = build(name, torch.float32)
    grads = {key: torch.randn_like(p) for key, p in params.items()}

    def run(steps: int) -> None:
        for _ in range(steps):
            for key, p in params.items():
                p.grad = grads[key]
            optimizer.step()

    run(20)
    used, tensors = optimizer.memory_usage(), alive()
    tracemalloc.start()
    sizes = []
    try:
        for _ in range(6):
            run(100)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert optimizer.memory_usage() == used
    assert alive() == tensors
    # An empty dictionary left behind at each step would be 6 kB in every window. The interpreter's own caches, and
    # what other tests have imported, grow by tens of kB at first and then not at all in some window.
    assert min(after - before for before, after in pairwise(sizes)) < 3_000


if __name__ == "__main__":
    resume(Path(sys.argv[1]))
