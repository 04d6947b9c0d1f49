"""The compiled products: torch's to rounding, the same bits for every number of threads, and dispensable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam

from fop_torch import FOP, kernels, preconditioners
from fop_torch.bucket import Bucket

ROOT = Path(__file__).parents[2]
built = pytest.mark.skipif(kernels.library is None, reason="the library isn't built here")
both_built = pytest.mark.skipif(not (kernels.library and kernels.wide), reason="not built, or not for this processor")
#: Those with code of their own, and others.
WIDTHS = (*kernels.WIDTHS, 2, 6, 17, 25, 49, kernels.WIDEST)
#: Rows: none, fewer than a vector reaches over, about a block, several blocks.
ROWS = (0, 1, 2, 5, 15, 17, 63, 65, kernels.BLOCK - 1, kernels.BLOCK + 1, 3 * kernels.BLOCK + 7)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(m: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, m, generator=generator) for n in ROWS]


def both(m: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(2)
    return drawn(m, 0), drawn(m, 1), torch.randn(len(ROWS), m, m, generator=generator)


def one_pass(m: int) -> list[Tensor]:
    """Velocities and parameters after one step of SGD by the library."""
    Gs, vs, P = both(m)
    ps = drawn(m, 3)
    kernels.sgd(Gs, P, vs, ps, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    return [*vs, *ps]


def test_the_library_is_built_where_there_is_a_compiler() -> None:
    """Else all that follows would be skipped, and nobody would know."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("no GCC")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if subprocess.run(["gcc", "-march=x86-64-v3", "-E", "-x", "c", "/dev/null"], capture_output=True).returncode:
        pytest.skip("not x86-64, or an old GCC")
    for module in settings["tool"]["setuptools"]["ext-modules"]:
        command = ["gcc", *module["extra-compile-args"], "-fsyntax-only", "-Wall", "-Werror", *module["sources"]]
        subprocess.run(command, cwd=ROOT, check=True)
    assert kernels.library is not None
    assert kernels.wide is not None or "avx512f" not in Path("/proc/cpuinfo").read_text().split()


@built
@pytest.mark.parametrize("m", WIDTHS)
def test_products_equal_those_in_double_precision(m: int) -> None:
    """Rounding of m or n terms, each relative to the sum of their sizes."""
    Gs, Hs, P = both(m)
    guarded = [torch.full((len(G) + 4, m), 7.0) for G in Gs]  # nothing is written past the end
    outs = [memory[: len(G)] for G, memory in zip(Gs, guarded, strict=True)]
    products, slopes = kernels.times(Gs, P, outs), kernels.slopes(Gs, Hs, P.unbind())
    eps = torch.finfo(torch.float32).eps
    for G, H, K, product, out, memory, slope in zip(Gs, Hs, P, products, outs, guarded, slopes, strict=True):
        assert product.data_ptr() == out.data_ptr()
        assert (memory[len(G) :] == 7).all()
        G, H, K = G.double(), H.double(), K.double()
        assert ((product - G @ K).abs() <= 2 * m * eps * (G.abs() @ K.abs())).all()
        C, size = G.T @ H, G.abs().T @ H.abs()
        assert ((slope - (C + C.T) @ K).abs() <= 2 * kernels.BLOCK**0.5 * eps * ((size + size.T) @ K.abs())).all()


@built
@pytest.mark.parametrize("m", WIDTHS)
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0},
        {"momentum": 0.0, "weight_decay": 0.01},
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ],
)
def test_sgds_step_in_one_pass_has_the_bits_of_torchs(m: int, options: dict[str, Any]) -> None:
    """Torch's step along the product that the library gives alone; nothing is written past the end."""
    Gs, vs, P = both(m)
    ps, guarded = drawn(m, 3), [[torch.full((n + 4, m), 7.0) for n in ROWS] for _ in range(2)]
    vs = vs if options["momentum"] else []
    velocities, params = ([memory[:n] for memory, n in zip(each, ROWS, strict=True)] for each in guarded)
    torch._foreach_copy_(params, ps)
    if vs:
        torch._foreach_copy_(velocities, vs)
    versions = [p._version for p in params]
    rest = {"weight_decay": 0.0, "nesterov": False} | options
    kernels.sgd(Gs, P, velocities if vs else [], params, lr=0.1, **rest)
    assert all((memory[n:] == 7).all() for each in guarded for memory, n in zip(each, ROWS, strict=True))
    assert all(p._version > version for p, version in zip(params, versions, strict=True))
    theirs = [torch.nn.Parameter(p) for p in ps]
    base = SGD(theirs, 0.1, foreach=False, **options)
    for number, (p, product) in enumerate(zip(theirs, kernels.times(Gs, P, [None] * len(Gs)), strict=True)):
        p.grad = product
        if vs:
            base.state[p]["momentum_buffer"] = vs[number]
    base.step()
    assert all(torch.equal(p, q) for p, q in zip(params, theirs, strict=True))
    assert all(torch.equal(v, base.state[p]["momentum_buffer"]) for v, p in zip(velocities, theirs, strict=False) if vs)


@built
@pytest.mark.parametrize("m", WIDTHS)
def test_bits_do_not_depend_on_the_threads(m: int, threads: None) -> None:
    Gs, Hs, P = both(m)
    found = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        found.append([*kernels.times(Gs, P, [None] * len(Gs)), *kernels.slopes(Gs, Hs, P.unbind()), *one_pass(m)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@both_built
@pytest.mark.parametrize("m", WIDTHS)
def test_bits_do_not_depend_on_the_lanes(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry is summed in a lane of its own, in the same order in both."""
    Gs, Hs, P = both(m)
    found = []
    for library in (kernels.load("_narrow"), kernels.load("_narrow_wide")):
        monkeypatch.setattr(kernels, "_for", lambda m, library=library: library)
        found.append([*kernels.times(Gs, P, [None] * len(Gs)), *kernels.slopes(Gs, Hs, P.unbind()), *one_pass(m)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@both_built
def test_the_wider_where_rows_fill_it_and_the_other_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [kernels._for(m) for m in (8, 9)] == [kernels.library, kernels.wide]
    monkeypatch.setattr(kernels, "wide", None)
    assert kernels._for(9) is kernels.library


@built
@pytest.mark.parametrize("m", WIDTHS)
def test_what_is_not_finite_stays_in_its_row(m: int) -> None:
    """A vector reaches into the next row: nothing of that may remain."""
    G, _, P = (each[-1] for each in both(m))
    spoilt = G.clone()
    spoilt[100] = torch.nan
    spoilt[len(G) - 2] = torch.inf
    (product,) = kernels.times([spoilt], P[None], [None])
    (clean,) = kernels.times([G], P[None], [None])
    rows = (~product.isfinite()).any(1).nonzero().flatten().tolist()
    assert rows == [100, len(G) - 2]
    product[rows] = clean[rows]
    assert torch.equal(product, clean)
    (slope,) = kernels.slopes([spoilt[:100]], [spoilt[:100]], [P])
    assert slope.isfinite().all()


def steps(dtype: torch.dtype = torch.float32, checkpoint: Path | None = None, **options: Any) -> list[Tensor]:
    """Parameters and factors after six steps of kernels of many sizes, interrupted after three if there is a file."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(70, 40, 3, 3), (8, 3, 3, 3), (6, 5, 1, 1), (4, 3, 5, 5), (9, 8, 2, 2), (7, 5, 3)]
    params = [torch.nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in shapes]
    momentum = {} if options.get("base") is Adam else {"momentum": 0.9}
    make = partial(FOP, params, preconditioner="spatial", hyper_lr=1e-2, **{"lr": 0.01, **momentum, **options})
    optimizer = make()
    for number in range(6):
        if number == 3 and checkpoint is not None:
            torch.save(optimizer.state_dict(), checkpoint)
            optimizer = make()
            optimizer.load_state_dict(torch.load(checkpoint))
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype) + p.detach()
        optimizer.step()
    return [p.detach() for p in params] + [optimizer.state[p]["M"] for p in params]


@built
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fused": True},
        {"normalize": True},
        {"fused": True, "normalize": True, "order": "m-first"},
        {"through": "velocity"},
        {"nesterov": True, "weight_decay": 0.1, "through": "step"},
        {"dampening": 0.5, "maximize": True},
        {"base": Adam, "fused": True},
    ],
)
def test_steps_equal_those_of_torchs_calls(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam divides by its gradient's size: what is left of rounding is relative to the step, not to the gradient."""
    calls = []
    monkeypatch.setattr(
        kernels, "takes", lambda m, tensors, takes=kernels.takes: calls.append(takes(m, tensors)) or calls[-1]
    )
    fast = steps(**options)
    assert sum(calls) > len(calls) / 2
    monkeypatch.setattr(kernels, "library", None)
    for a, b in zip(fast, steps(**options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"dtype": torch.float64}, {"dtype": torch.bfloat16, "foreach": True}]
)
def test_torchs_calls_where_asked_for_or_needed(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit what comes without the library."""
    found = steps(**options)
    monkeypatch.setattr(kernels, "library", None)
    assert all(torch.equal(a, b) for a, b in zip(found, steps(**options), strict=True))


@built
@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_a_run_resumed_has_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    resumed = steps(checkpoint=tmp_path / "checkpoint", **options)
    assert all(torch.equal(a, b) for a, b in zip(steps(**options), resumed, strict=True))


@built
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 5),  # all but the first, for every size that the library has code for
        ({"fused": True}, 5),
        ({"foreach": False, "lr": torch.tensor(0.01)}, 5),
        ({"momentum": 0.0}, 6),
        ({"foreach": True}, 0),
        ({"dampening": 0.5}, 0),
        ({"maximize": True}, 0),
        ({"dtype": torch.float64}, 0),
        ({"dtype": torch.bfloat16}, 0),
        ({"base": Adam}, 0),
        ({"base": type("Other", (SGD,), {})}, 0),  # its step may be another
    ],
)
def test_one_pass_where_it_is_right(options: dict[str, Any], passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    sgd = kernels.sgd
    monkeypatch.setattr(kernels, "sgd", lambda Gs, P, *a, **k: widths.append(P.shape[-1]) or sgd(Gs, P, *a, **k))
    steps(**options)
    assert sorted(widths) == sorted([1, 3, 4, 9, 25] * passes)


@built
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"nesterov": True, "weight_decay": 0.1, "through": "step"},
        {"through": "velocity"},
        {"order": "m-first"},
        {"index": "exact", "max_norm": 1.5},
    ],
)
def test_one_pass_has_the_bits_of_product_and_step(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps(**options)
    monkeypatch.setattr(Bucket, "_in_one_pass", lambda self, base: None)
    assert all(torch.equal(a, b) for a, b in zip(found, steps(**options), strict=True))


@built
def test_a_frozen_factor_in_one_pass_has_the_bits_of_torchs_step() -> None:
    trained = []
    for make in (partial(FOP, hyper_lr=0.0, preconditioner="spatial"), SGD):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(61, 64, 3, 3, generator=generator))]
        optimizer = make(params, lr=0.1, momentum=0.9, weight_decay=0.01)
        for _ in range(20):
            params[0].grad = torch.randn(params[0].shape, generator=generator)
            optimizer.step()
        trained.append(params[0].detach())
    assert torch.equal(*trained)


@built
def test_autograd_knows_what_one_pass_wrote() -> None:
    """A graph that still needs the weight as it was is refused, not taken through the new one."""
    p = torch.nn.Parameter(torch.randn(8, 8, 3, 3))
    optimizer = FOP([p], 0.1, momentum=0.9, preconditioner="spatial")
    for _ in range(2):
        loss = p.square().sum()
        p.grad = torch.ones_like(p)
        optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@built
@pytest.mark.parametrize(
    ("m", "entries", "expected"),
    [(9, kernels.FEW + 9, True), (25, kernels.FEW, True), (25, kernels.FEW + 50, False), (65, 65, False)],
)
def test_other_widths_for_few_rows(m: int, entries: int, expected: bool) -> None:
    assert kernels.takes(m, [torch.zeros(m), torch.zeros(entries // m * m)]) == expected


@built
def test_a_library_older_than_its_source_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It may know other functions, or other arguments of them."""
    package = tmp_path / "fop_torch"
    package.mkdir()
    copy = Path(shutil.copy(kernels.library._name, package))
    monkeypatch.setattr(kernels, "__file__", str(package / "kernels.py"))
    assert kernels.load("_narrow") is not None
    source, project = package / "narrow.c", tmp_path / "pyproject.toml"
    source.touch()
    for checkout, age, loads in ((True, -10, True), (True, 10, False), (False, 10, True)):
        project.touch() if checkout else project.unlink()
        os.utime(source, (copy.stat().st_mtime + age,) * 2)
        assert (kernels.load("_narrow") is not None) == loads


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Absent or broken, it is as if it had never been there."""
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    for name in ("_narrow", "_narrow_wide"):
        assert kernels.load(name) is None
        (tmp_path / f"{name}{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
        assert kernels.load(name) is None
    monkeypatch.setattr(kernels, "library", None)
    Gs, Hs, P = both(9)
    G, H = (each[-1].view(-1, 1, 3, 3) for each in (Gs, Hs))
    assert not kernels.takes(9, [G])
    (slope,) = kernels.SPATIAL.slopes([P[-1]], [G], [H])
    assert torch.equal(slope, preconditioners.FORMS["spatial"].slopes([P[-1]], [G], [H])[0])
    (product,) = kernels.SPATIAL.times([G], P[-1:], [None])
    assert torch.equal(product.view(-1, 9), preconditioners.times(Gs[-1:], P[-1:], [None])[0])


@built
def test_who_counts_operations_sees_torchs() -> None:
    from fop_torch.studies import cost

    (p,) = cost.with_gradients([(32, 32, 3, 3)])
    optimizer = FOP([p], 0.1, momentum=0.9, preconditioner="spatial")
    optimizer.step()
    optimizer.step()
    # The Gram matrix and the product, each 2 * 9 operations an entry, and twice that for pairs of rows.
    assert cost.watch(optimizer.step)[1] >= 2 * 2 * 9 * p.numel()


@built
@pytest.mark.parametrize("n", [0, 1, 7, 40_000])
def test_what_is_not_bounded_is_found_wherever_it_stands(n: int) -> None:
    tensors = [torch.ones(n), torch.ones(3, 5), torch.ones(100_000)]
    largest = torch.finfo(torch.float32).max
    assert kernels.bounded(tensors, largest)
    assert kernels.bounded(tensors, 100_000)
    assert not kernels.bounded(tensors, 99_999)
    for tensor in tensors:
        for place in {0, tensor.numel() // 2, tensor.numel() - 1} if tensor.numel() else ():
            for value in (torch.nan, torch.inf, -torch.inf, 2e19):  # whose square is not finite
                spoilt = [each.clone() for each in tensors]
                spoilt[[each is tensor for each in tensors].index(True)].view(-1)[place] = value
                assert not kernels.bounded(spoilt, largest)
