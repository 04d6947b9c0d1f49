"""The step under torch.compile: cut no more often than torch's SGD, compiled twice and no more, equal numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from fop_torch import FOP, PPHD, SHD
from fop_torch.preconditioners import FORMS

SHAPES = ((8, 4, 3, 3), (8, 8, 3, 3), (6, 32, 1, 1), (10, 32), (10,))
OPTIMIZERS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "FOP": lambda params: FOP(params, lr=0.1, momentum=0.9),
    "FOP, M first": lambda params: FOP(params, lr=0.1, momentum=0.9, order="m-first"),
    "FOP, exact index": lambda params: FOP(params, lr=0.1, index="exact", normalize=False),
    "FOP-norm": lambda params: FOP(params, lr=0.1, normalize=True, preconditioner="dense"),
    "FOP with Adam": lambda params: FOP(params, lr=0.01, base=torch.optim.Adam),
    "S-HD": lambda params: SHD(params, lr=0.1, momentum=0.9),
    "PP-HD": lambda params: PPHD(params, lr=0.1, momentum=0.9),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*dynamo_pgo.*", "ignore:.*Profiler record function.*")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(0.1 * torch.randn(shape, generator=generator)) for shape in SHAPES]


def trajectory(
    build: Callable[[list[torch.Tensor]], torch.optim.Optimizer], compiled: bool, steps: int = 5
) -> tuple[list[torch.Tensor], list[int]]:
    """The parameters after some steps, and how many graphs there were after each."""
    params = parameters()
    optimizer = build(params)
    step = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
    graphs = []
    for number in range(steps):
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        step()
        graphs.append(counters["stats"]["unique_graphs"])
    return params, graphs


def places_of_breaks() -> set[str]:
    """What cuts the graph, each cause once: a cause is counted anew whenever its frame is compiled again."""
    return {reason.split("\n")[0] for reason in counters["graph_break"]}


def test_sgds_own_step_is_cut_once() -> None:
    trajectory(lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), compiled=True, steps=3)
    assert len(places_of_breaks()) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_step_goes_the_same_way_is_compiled_twice_and_cut_once(name: str) -> None:
    plain, _ = trajectory(OPTIMIZERS[name], compiled=False)
    compiled, graphs = trajectory(OPTIMIZERS[name], compiled=True)
    for p, q in zip(plain, compiled, strict=True):
        # Products are the same; sums may be taken in another order.
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert graphs[0] > 0
    assert graphs[1:] == [graphs[1]] * 4
    assert len(places_of_breaks()) == 1
    assert all("_prepare" in reason for reason in counters["graph_break"])


@pytest.mark.parametrize("name", FORMS)
def test_the_functional_core_compiles_whole(name: str) -> None:
    form = FORMS[name]
    shape = torch.Size((8, 4, 3, 3))
    generator = torch.Generator().manual_seed(0)
    M = form.start(shape, 4, 0.1, generator)
    G, H = (torch.randn(shape, generator=generator) for _ in range(2))

    def core(M: torch.Tensor, G: torch.Tensor, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        projected = form.project([M], [G])
        return form.precondition([M], [G], projected)[0], form.slopes([M], [G], [H], projected)[0]

    for expected, found in zip(
        core(M, G, H), torch.compile(core, backend="aot_eager", fullgraph=True)(M, G, H), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_a_compiled_step_skips_what_is_not_finite() -> None:
    params = parameters()
    optimizer = FOP(params, lr=0.1, momentum=0.9)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for number in range(3):
        for p in params:
            p.grad = torch.full_like(p, 0.1 + number)
        step()
    before = [p.detach().clone() for p in params]
    assert params[0].grad is not None
    params[0].grad[0, 0, 0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="skipped a step"):
        step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(p, q) for p, q in zip(before, params, strict=True))
