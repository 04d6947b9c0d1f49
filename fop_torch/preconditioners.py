"""The forms of the preconditioner, each a few pure functions of the factor M and two gradients.

A gradient is seen as rows `[n, m]`: a linear layer's weight `[out, in]` as it is, a convolution's kernels
`[out, in, k, k]` as `[out * in, k * k]`. The preconditioner `P: [m, m]` is symmetric and acts from the right,
`G P`, which is the paper's `P G` for the transposed matrix. `G` is the present gradient, `H` the one before.

Every form answers three questions about lists of parameters of one kind: the preconditioned gradients, the
derivatives of `<G, H P(M)>` by M, and P itself for those who want to look at it. The step multiplies the
second by minus the learning rate: that is Eq. (4).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


def _in_pairs(gradients: Tensors) -> bool:
    """May rows go in pairs? See `times`."""
    return all(G.dim() == 2 and G.shape[0] % 2 == 0 and G.shape[1] <= 16 for G in gradients)


def times(gradients: Tensors, P: Tensor, outs: Sequence[Tensor | None]) -> list[Tensor]:
    """`G P` for each of several layers, for few columns and very many rows.

    Args:
        gradients: L of them, each `[n, m]`, or `[o, m, i]` for kernels whose channels lie last in memory.
        P: `[L, m, m]`, symmetric.
        outs: Where to write each, laid out as the gradient, or None.

    Returns:
        The products, of the gradients' shapes. Pairs of rows go through `diag(P, P)`: matrix products this narrow
        run at a fraction of the machine's speed. What twice the width gains depends on threads and caches; the page
        on costs measures it.
    """
    m = P.shape[-1]
    if _in_pairs(gradients):
        twice = P.new_zeros(len(P), 2 * m, 2 * m)
        twice[:, :m, :m] = P
        twice[:, m:, m:] = P
        return [
            torch.mm(G.view(-1, 2 * m), K, out=None if out is None else out.view(-1, 2 * m)).view_as(G)
            for G, K, out in zip(gradients, twice.unbind(), outs, strict=True)
        ]
    return [
        torch.mm(G, K, out=out) if G.dim() == 2 else torch.bmm(K.expand(len(G), -1, -1), G, out=out)
        for G, K, out in zip(gradients, P.unbind(), outs, strict=True)
    ]


def grams(gradients: Tensors, previous: Tensors) -> Tensor:
    """`G^T H` for each of several layers, for few columns and very many rows.

    Args:
        gradients: L of them, each `[n, m]`, or `[o, m, i]` for kernels whose channels lie last in memory.
        previous: The same, H.

    Returns:
        `[L, m, m]`. Rows are taken in pairs, as in `times`, and in chunks besides that the processor's cores share;
        the blocks on the diagonal are then added.
    """
    m = gradients[0].shape[1]
    width = 2 * m if _in_pairs(gradients) else m
    blocks = []
    for G, H in zip(gradients, previous, strict=True):
        if G.dim() == 3:
            blocks.append(torch.bmm(G, H.mT).sum(0, keepdim=True))
        else:
            chunks = math.gcd(8, G.numel() // width)
            blocks.append(torch.bmm(G.view(chunks, -1, width).mT, H.view(chunks, -1, width)))
    if any(block.shape != blocks[0].shape for block in blocks):
        blocks = [block.sum(0, keepdim=True) for block in blocks]
    found = torch.stack(blocks).sum(1)
    return found if width == m else found[:, :m, :m] + found[:, m:, m:]


def norm_from_above(K: Tensor) -> Tensor:
    """`tr(K^64)^(1/64)`, at least the spectral norm and at most `m^(1/64)` times it; products alone, no host wait.

    Args:
        K: `[m, m]`, positive semi-definite.

    Returns:
        0-d.
    """
    log, power = torch.zeros((), dtype=K.dtype, device=K.device), 1
    for _ in range(6):
        # The largest entry: a norm's squares would overflow, or vanish.
        size = K.abs().amax().clamp_min(torch.finfo(K.dtype).tiny)
        log = log + size.log() / power
        K = K / size
        K = K @ K
        power *= 2
    return (log + K.trace().log() / power).exp()


def safe_factor(G: Tensor, H: Tensor, a: Tensor, tau: float) -> Tensor:
    """`min(1, tau / (a s))` where `s = |G| |H| - <G, H>` bounds `-lambda_min(G^T H + H^T G)` from above.

    With u a unit eigenvector, `-2 <G u, H u> = <G (I - 2 u u^T), H> - <G, H>`, and `I - 2 u u^T` is a reflection.

    Args:
        G: Gradient.
        H: The one before, of the same shape.
        a: Learning rate times hypergradient learning rate, 0-d.
        tau: Share of the way to the loss of definiteness, in (0, 1).

    Returns:
        0-d factor for the hypergradient.
    """
    negative = torch.linalg.vector_norm(G) * torch.linalg.vector_norm(H) - (G * H).sum()
    return (tau / (a * negative).clamp_min(torch.finfo(G.dtype).tiny)).clamp_max(1)


class Form(ABC):
    """What a kind of preconditioner must answer; `M` has the shape that `factor_shape` gives."""

    #: Is P positive semi-definite whatever M is?
    positive = True
    #: Does M learn by the normalised hypergradient, which has no learning rate in it?
    normalised = False
    #: Do layers share calls? Then those that take a step together have factors of one size.
    batched = False
    #: Bound on P where `max_norm` names none.
    bound: float | None = None

    def check(self, shape: torch.Size) -> None:  # noqa: B027 (most forms fit every shape)
        """Raise `ValueError` if a parameter of this shape cannot have this form."""

    @abstractmethod
    def factor_shape(self, shape: torch.Size, rank: int | None) -> tuple[int, ...]:
        """Shape of M for a parameter of this shape."""

    def start(self, shape: torch.Size, rank: int | None, scale: float, generator: torch.Generator) -> Tensor:
        """M before the first step, in float32: P = I, but for the low rank's random factor."""
        return torch.ones(self.factor_shape(shape, rank))

    def project(self, Ms: Tensors, Gs: Tensors) -> Tensors | None:
        """What both other answers need and can share, or None."""
        return None

    @abstractmethod
    def precondition(
        self, Ms: Tensors, Gs: Tensors, projected: Tensors | None = None, outs: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """`G P(M)` for each parameter, of G's shape.

        Args:
            Ms: The factors.
            Gs: The gradients.
            projected: What `project` gave for them.
            outs: Memory that may be taken for the answers, laid out as the gradients; a fresh page of memory costs
                more than what is written to it.
        """

    def limit(self, Ms: Tensors, bound: float) -> None:
        """Take M down, in place, where the spectral norm of P exceeds the bound."""
        largest = math.sqrt(bound) if self.positive else bound
        for M in Ms:
            M.clamp_(-largest, largest)

    @abstractmethod
    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """Derivative by M of `<G, H P(M)>` for each parameter, of M's shape."""

    @abstractmethod
    def matrix(self, M: Tensor, shape: torch.Size) -> Tensor:
        """P, `[m, m]`; for the forms that are diagonal, its diagonal."""


class Dense(Form):
    """P = M M^T over the input dimension, M: [m, m] (Eq. (2)). No m x m matrix of the gradients is formed."""

    def rows(self, T: Tensor) -> Tensor:
        """The parameter or gradient as rows `[n, m]`: its first dimension against all others."""
        if T.dim() == 2:
            return T
        return T.reshape(1, -1) if T.dim() < 2 else T.reshape(T.shape[0], -1)

    def width(self, shape: torch.Size) -> int:
        """m: the input dimension, flattened."""
        return math.prod(shape) if len(shape) < 2 else math.prod(shape[1:])

    def factor_shape(self, shape: torch.Size, rank: int | None) -> tuple[int, ...]:
        """`[m, m]`."""
        return (self.width(shape),) * 2

    def start(self, shape: torch.Size, rank: int | None, scale: float, generator: torch.Generator) -> Tensor:
        """The identity."""
        return torch.eye(self.width(shape))

    def project(self, Ms: Tensors, Gs: Tensors) -> list[Tensor]:
        """`G M` for each parameter, `[n, k]`."""
        return [torch.mm(self.rows(G), M) for M, G in zip(Ms, Gs, strict=True)]

    def precondition(
        self, Ms: Tensors, Gs: Tensors, projected: Tensors | None = None, outs: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """`(G M) M^T`."""
        projected = self.project(Ms, Gs) if projected is None else projected
        return [
            torch.mm(GM, M.mT, out=None if out is None else self.rows(out)).view_as(G)
            for M, G, GM, out in zip(Ms, Gs, projected, outs or [None] * len(Gs), strict=True)
        ]

    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """`G^T (H M) + H^T (G M)` (Eq. (4) without its factor)."""
        projected = self.project(Ms, Gs) if projected is None else projected
        found = []
        for M, G, H, GM in zip(Ms, map(self.rows, Gs), map(self.rows, Hs), projected, strict=True):
            found.append(torch.addmm(torch.mm(H.mT, GM), G.mT, torch.mm(H, M)))
        return found

    def scales(self, Ms: Tensors) -> list[Tensor]:
        """Eq. (11)'s factor `sqrt(m) / |P|_F` for each parameter, 0-d."""
        return [math.sqrt(M.shape[-2]) / self.square_norm(M).sqrt() for M in Ms]

    def norm_slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, slopes: Tensors, scales: Tensors) -> list[Tensor]:
        """Derivative by M of `scale(M) <G, H P(M)>`, through the norm, from the derivative without it.

        With `|P|^2 = N(M)` the derivative of `sqrt(m) f / sqrt(N)` is `scale (f' - f N' / (2 N))`.
        """
        found = []
        for M, G, H, slope, scale in zip(Ms, Gs, Hs, slopes, scales, strict=True):
            value = self.value(M, G, H, slope)
            found.append(scale * (slope - value / self.square_norm(M) * self.half_norm_slope(M)))
        return found

    def value(self, M: Tensor, G: Tensor, H: Tensor, slope: Tensor) -> Tensor:
        """`<G, H P>` from its derivative, 0-d (Euler's relation: half of `<slope, M>` where P is quadratic)."""
        return (slope * M).sum() / 2

    def square_norm(self, M: Tensor) -> Tensor:
        """`|M^T M|_F^2`, which is `|M M^T|_F^2`."""
        return (M.mT @ M).square().sum()

    def half_norm_slope(self, M: Tensor) -> Tensor:
        """`2 P M = 2 M (M^T M)`."""
        return 2 * (M @ (M.mT @ M))

    def limit(self, Ms: Tensors, bound: float) -> None:
        """`M` times `sqrt(bound / |P|)` where that is less than one."""
        for M in Ms:
            M.mul_((bound / norm_from_above(M.mT @ M)).clamp_(max=1).sqrt_())

    def matrix(self, M: Tensor, shape: torch.Size) -> Tensor:
        """`M M^T`."""
        return M @ M.mT


class LowRank(Dense):
    """P = I + M M^T, M: [m, r] (Eq. (23))."""

    def factor_shape(self, shape: torch.Size, rank: int | None) -> tuple[int, ...]:
        """`[m, rank]`."""
        return (self.width(shape), self.width(shape) if rank is None else rank)

    def start(self, shape: torch.Size, rank: int | None, scale: float, generator: torch.Generator) -> Tensor:
        """Independent normal entries of standard deviation `scale`, the paper's sigma."""
        return scale * torch.randn(self.factor_shape(shape, rank), generator=generator)

    def precondition(
        self, Ms: Tensors, Gs: Tensors, projected: Tensors | None = None, outs: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """`G + (G M) M^T`."""
        projected = self.project(Ms, Gs) if projected is None else projected
        return [torch.addmm(self.rows(G), GM, M.mT).view_as(G) for M, G, GM in zip(Ms, Gs, projected, strict=True)]

    def limit(self, Ms: Tensors, bound: float) -> None:
        """As for the dense form, with `bound - 1` for M M^T."""
        super().limit(Ms, bound - 1)

    def square_norm(self, M: Tensor) -> Tensor:
        """`m + 2 |M|_F^2 + |M^T M|_F^2`."""
        return M.shape[0] + 2 * M.square().sum() + (M.mT @ M).square().sum()

    def value(self, M: Tensor, G: Tensor, H: Tensor, slope: Tensor) -> Tensor:
        """`<G, H> + <slope, M> / 2`."""
        return (G * H).sum() + (slope * M).sum() / 2

    def half_norm_slope(self, M: Tensor) -> Tensor:
        """`2 P M = 2 (M + M (M^T M))`."""
        return 2 * (M + M @ (M.mT @ M))

    def matrix(self, M: Tensor, shape: torch.Size) -> Tensor:
        """`I + M M^T`."""
        return torch.eye(M.shape[0], dtype=M.dtype, device=M.device) + M @ M.mT


class Spatial(Dense):
    """P = M M^T over a kernel's k x k positions, shared by all channels, M: [k^2, k^2] (Section 2.2).

    Layers whose kernels have the same size share the small products in one batched call.
    """

    batched = True

    def check(self, shape: torch.Size) -> None:
        """A kernel has two dimensions of channels and at least one of space."""
        if len(shape) < 3:
            raise ValueError(
                f"preconditioner: 'spatial' needs the kernels of a convolution [out, in, k, ...], got a parameter of "
                f"shape {list(shape)}; use 'dense', 'low_rank' or 'none' for it"
            )

    def rows(self, T: Tensor) -> Tensor:
        """Kernels as rows `[out * in, k^2]`, or as `[out, k^2, in]` where they lie so in memory; a view of both."""
        if not T.is_contiguous():
            planes = T.movedim(1, -1)
            if planes.is_contiguous():
                return planes.view(T.shape[0], -1, T.shape[1])
        return T.reshape(-1, math.prod(T.shape[2:])).contiguous()

    def width(self, shape: torch.Size) -> int:
        """k^2."""
        return math.prod(shape[2:])

    def project(self, Ms: Tensors, Gs: Tensors) -> None:  # type: ignore[override]
        """Nothing: the products with the many rows differ."""

    def precondition(
        self, Ms: Tensors, Gs: Tensors, projected: Tensors | None = None, outs: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """`G P`."""
        return self.times(Gs, self.joint(Ms), outs or [None] * len(Gs))

    def joint(self, Ms: Tensors) -> Tensor:
        """P of all layers, `[L, k^2, k^2]`."""
        M = torch.stack(tuple(Ms))
        return torch.bmm(M, M.mT)

    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """`(G^T H + H^T G) M`."""
        C = self.grams(Gs, Hs)
        return list(torch.bmm(C + C.mT, torch.stack(tuple(Ms))).unbind())

    def times(self, Gs: Tensors, P: Tensor, outs: Sequence[Tensor | None]) -> list[Tensor]:
        """`G P`, the product with the many rows; by torch's calls, `fop_torch.kernels` has others."""
        found = times([self.rows(G) for G in Gs], P, [None if out is None else self.rows(out) for out in outs])
        return [
            product.view_as(G) if product.dim() == 2 else product.view_as(G.movedim(1, -1)).movedim(-1, 1)
            for G, product in zip(Gs, found, strict=True)
        ]

    def grams(self, Gs: Tensors, Hs: Tensors) -> Tensor:
        """`G^T H`, likewise."""
        if any(G.stride() != H.stride() for G, H in zip(Gs, Hs, strict=True)):
            # They lie alike in memory unless somebody changed the layout between two steps.
            Gs, Hs = [G.contiguous() for G in Gs], [H.contiguous() for H in Hs]
        return grams([self.rows(G) for G in Gs], [self.rows(H) for H in Hs])


class Rates(Form):
    """P is diagonal: a rate for each entry, or one for all."""

    def rate(self, M: Tensor) -> Tensor:
        """The diagonal of P, of M's shape."""
        return M.square()

    def precondition(
        self, Ms: Tensors, Gs: Tensors, projected: Tensors | None = None, outs: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """The rate times G, entry by entry."""
        return [self.rate(M) * G for M, G in zip(Ms, Gs, strict=True)]

    def matrix(self, M: Tensor, shape: torch.Size) -> Tensor:
        """The diagonal of P, flat; one entry where there is one rate."""
        return self.rate(M).reshape(-1)


class Diagonal(Rates):
    """P = diag(M * M), one entry a parameter, M of the parameter's shape: PP-HD's diagonal, kept positive."""

    def factor_shape(self, shape: torch.Size, rank: int | None) -> tuple[int, ...]:
        """The parameter's."""
        return tuple(shape)

    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """`2 G H M`, entry by entry."""
        return [2 * G * H * M for M, G, H in zip(Ms, Gs, Hs, strict=True)]


class Scalar(Rates):
    """P = M^2 I with one number M a parameter tensor, 0-d: S-HD's rate, kept positive."""

    def factor_shape(self, shape: torch.Size, rank: int | None) -> tuple[int, ...]:
        """0-d."""
        return ()

    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """`2 <G, H> M`."""
        return [2 * M * torch.vdot(G.reshape(-1), H.reshape(-1)) for M, G, H in zip(Ms, Gs, Hs, strict=True)]


class PerParameterRate(Diagonal):
    """P = diag(M), one rate a parameter, free to become negative: the paper's PP-HD (Section 4)."""

    positive = False

    def rate(self, M: Tensor) -> Tensor:
        """M itself."""
        return M

    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """`G H`, entry by entry."""
        return [G * H for G, H in zip(Gs, Hs, strict=True)]


class LayerRate(Scalar):
    """P = M I with one rate a parameter tensor, free to become negative: the paper's S-HD (Section 4)."""

    positive = False

    def rate(self, M: Tensor) -> Tensor:
        """M itself."""
        return M

    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """`<G, H>`."""
        return [torch.vdot(G.reshape(-1), H.reshape(-1)) for G, H in zip(Gs, Hs, strict=True)]


class Linear(Form):
    """P = M itself, symmetric, learned by gradient steps on P (`fop_theory.online`); definite within `max_norm` alone.

    A kernel has one P over its positions, a matrix one over its inputs up to `widest`, all else a rate, M I. Layers
    whose P have the same size share the calls.
    """

    positive = False
    normalised = True
    batched = True
    #: Above that many inputs a matrix of inputs by inputs is not worth its price.
    widest = 128
    #: The eigenvalue of M where P = I.
    identity = 1.0

    def width(self, shape: torch.Size) -> int:
        """m; the rows are what is left."""
        positions = math.prod(shape[2:])
        inner = positions if len(shape) > 2 and positions > 1 else math.prod(shape[1:])
        return inner if len(shape) > 1 and inner <= self.widest else 1

    def factor_shape(self, shape: torch.Size, rank: int | None) -> tuple[int, ...]:
        """`[m, m]`."""
        return (self.width(shape),) * 2

    def start(self, shape: torch.Size, rank: int | None, scale: float, generator: torch.Generator) -> Tensor:
        """The M of P = I."""
        return self.identity * torch.eye(self.width(shape))

    def precondition(
        self, Ms: Tensors, Gs: Tensors, projected: Tensors | None = None, outs: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """`G P`."""
        P, into = self.matrix(torch.stack(tuple(Ms)), Gs[0].shape), outs or [None] * len(Gs)
        if P.shape[-1] == 1:  # matrix products of one column take many times longer than a rate
            rates = P.view(-1).unbind()
            return [torch.mul(G, rate, out=out) for G, rate, out in zip(Gs, rates, into, strict=True)]
        found = times([_rows(G, P) for G in Gs], P, [None if out is None else _rows(out, P) for out in into])
        return [product.view(G.shape) for G, product in zip(Gs, found, strict=True)]

    def slopes(self, Ms: Tensors, Gs: Tensors, Hs: Tensors, projected: Tensors | None = None) -> list[Tensor]:
        """`(G^T H + H^T G) / (2 |H| measure)`, the hypergradient of P over a squared gradient."""
        if Ms[0].numel() == 1:
            products = [torch.vdot(G.reshape(-1), H.reshape(-1)) for G, H in zip(Gs, Hs, strict=True)]
            C = torch.stack(products)[:, None, None]
        else:
            C = grams([_rows(G, Ms[0]) for G in Gs], [_rows(H, Ms[0]) for H in Hs])
        G, H = (torch.stack(torch._foreach_norm(list(each)))[:, None, None] for each in (Gs, Hs))
        tiny = torch.finfo(C.dtype).tiny
        return list(((C + C.mT) / (2 * H).clamp_min(tiny) / self.measure(G, H).clamp_min(tiny)).unbind())

    def measure(self, G: Tensor, H: Tensor) -> Tensor:
        """The norm by which the hypergradient is divided beside |H|: |H| again, as the theorems on linear P have it."""
        return H

    def limit(self, Ms: Tensors, bound: float) -> None:
        """Clip the eigenvalues of P to those from `1 / bound` to `bound`: the projection onto what keeps the bound."""
        low, high = self.span(bound)
        M = torch.stack(tuple(Ms))
        # Nearer to the identity than either end nothing can be beyond it: a norm is cheaper than eigenvectors.
        identity = self.identity * torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
        away = torch.linalg.vector_norm(M - identity, dim=(1, 2))
        beyond = (away > min(high - self.identity, self.identity - low)) & away.isfinite()
        if bool(beyond.any()):
            chosen = [each for each, far in zip(Ms, beyond.tolist(), strict=True) if far]
            values, vectors = torch.linalg.eigh(torch.stack(chosen))
            clipped = (vectors * values.clamp(low, high)[:, None, :]) @ vectors.mT
            torch._foreach_copy_(chosen, list(clipped.unbind()))

    def span(self, bound: float) -> tuple[float, float]:
        """Least and largest eigenvalue of M within the bound."""
        return 1 / bound, bound

    def matrix(self, M: Tensor, shape: torch.Size) -> Tensor:
        """M itself."""
        return M


class Exponential(Linear):
    """P = exp(M), M symmetric: definite whatever M is, and learned by mirror steps (`fop_theory.online`).

    It has the shapes of the linear form.
    """

    positive = True
    #: Beyond any step that is of use, and far from where exp(M) overflows.
    bound = 1e3
    identity = 0.0

    def measure(self, G: Tensor, H: Tensor) -> Tensor:
        """The larger of both: no update is longer than the rate."""
        return torch.maximum(G, H)

    def span(self, bound: float) -> tuple[float, float]:
        """The bound's logarithm and its negative."""
        return -math.log(bound), math.log(bound)

    def matrix(self, M: Tensor, shape: torch.Size) -> Tensor:
        """`exp(M)`."""
        return torch.linalg.matrix_exp(M)


def _rows(T: Tensor, P: Tensor) -> Tensor:
    """A gradient as rows `[n, m]` for a P of m columns."""
    return T.reshape(-1, P.shape[-1]).contiguous()


#: The forms by the names that `FOP(preconditioner=...)` takes; "none" leaves the gradient as it is.
FORMS: dict[str, Form] = {
    "spatial": Spatial(),
    "dense": Dense(),
    "low_rank": LowRank(),
    "diagonal": Diagonal(),
    "scalar": Scalar(),
    "pp-hd": PerParameterRate(),
    "s-hd": LayerRate(),
    "linear": Linear(),
    "exponential": Exponential(),
}
