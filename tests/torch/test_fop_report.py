"""What FOP says of itself: P, eigenvalues, gain, angle; the recorder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fop_torch import FOP, Recorder


def trained(steps: int = 7, **options: object) -> tuple[torch.nn.Module, FOP]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2)).double()
    optimizer = FOP(model.named_parameters(), lr=0.05, hyper=torch.optim.SGD, hyper_lr=1.0, **options)  # type: ignore[arg-type]
    go_on(model, optimizer, steps)
    return model, optimizer


def go_on(model: torch.nn.Module, optimizer: FOP, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 2, 4, 4, dtype=torch.float64, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("normalize", [False, True])
def test_what_was_learned_agrees_with_numpy(normalize: bool) -> None:
    model, optimizer = trained(normalize=normalize)
    found = optimizer.preconditioners()
    assert list(found) == ["0.weight", "2.weight"]
    for name, learned in found.items():
        M = learned.M.numpy()
        P = M @ M.T
        if normalize:
            P = P * math.sqrt(len(P)) / np.linalg.norm(P)
        grad = model.get_parameter(name).grad
        assert grad is not None
        G = grad.reshape(-1, len(P)).numpy()
        np.testing.assert_allclose(learned.P, P, rtol=1e-12)
        np.testing.assert_allclose(learned.eigenvalues, np.linalg.eigvalsh(P), rtol=1e-10)
        assert learned.condition == pytest.approx(np.linalg.cond(P), rel=1e-9)
        assert learned.gain == pytest.approx(np.linalg.norm(G @ P) / np.linalg.norm(G), rel=1e-12)
        cosine = np.sum(G * (G @ P)) / np.linalg.norm(G) / np.linalg.norm(G @ P)
        # Near 0 degrees the arc cosine loses half of the digits.
        assert learned.angle == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-5)
        assert learned.condition > 1.001


def test_the_recorder_keeps_what_was_true_at_each_record() -> None:
    model, optimizer = trained(steps=0)
    recorder = Recorder(optimizer, every=3)
    seen = []
    for _ in range(3):
        go_on(model, optimizer, 3)
        seen += [(name, learned.gain, learned.angle) for name, learned in optimizer.preconditioners().items()]
    recorder.close()
    go_on(model, optimizer, 3)
    rows = recorder.rows()
    assert [row["step"] for row in rows] == [3, 3, 6, 6, 9, 9]
    for row, (name, gain, angle) in zip(rows, seen, strict=True):
        assert row["parameter"] == name
        assert row["gain"] == pytest.approx(gain, rel=1e-12)
        assert row["angle"] == pytest.approx(angle, abs=1e-5)
    assert rows[0]["gain"] != rows[-2]["gain"]


def test_recording_reads_no_number_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one would make the host wait for the device."""
    model, optimizer = trained(steps=2)
    optimizer._nonfinite = "ignore"  # on a CPU the guard reads a number, which costs nothing there
    read = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
        known = getattr(torch.Tensor, name)

        def watched(self: torch.Tensor, *args: object, name: str = name, known: object = known) -> object:
            read.append(name)
            return known(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(torch.Tensor, name, watched)
    recorder = Recorder(optimizer, every=1)
    go_on(model, optimizer, 2)
    assert read == []
    assert len(recorder.rows()) == 4
    assert set(read) == {"tolist"}


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_a_bad_interval_is_named(every: object) -> None:
    _, optimizer = trained(steps=0)
    with pytest.raises(ValueError, match=rf"every: expected a whole number, at least 1, got {every!r}"):
        Recorder(optimizer, every=every)  # type: ignore[arg-type]


def test_an_optimizer_that_learns_nothing_is_not_recorded() -> None:
    with pytest.raises(TypeError, match="optimizer: expected FOP, SHD or PPHD, got SGD"):
        Recorder(torch.optim.SGD([torch.ones(1)], 0.1))  # type: ignore[arg-type]


def test_a_preconditioner_that_has_overflowed_can_be_looked_at() -> None:
    """The solver for eigenvalues refuses what is not finite; who looks then wants to see just that."""
    _, optimizer = trained(steps=2)
    optimizer.state[optimizer.param_groups[0]["params"][0]]["M"].mul_(1e200)
    found = optimizer.preconditioners()
    assert found["0.weight"].P.isinf().any()
    assert found["0.weight"].eigenvalues.isnan().all()
    assert math.isnan(found["0.weight"].condition)
    assert found["2.weight"].eigenvalues.isfinite().all()
