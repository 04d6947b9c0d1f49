"""Section 2.2: one preconditioner for all columns, its Kronecker form, its hypergradient, its cost."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import counts, sharing
from fop_theory import hypergradient as hg
from tests.helpers import Counted, counted
from tests.strategies import factors, gradient_pairs, scales, seeds

widths, channels = st.integers(1, 3), st.integers(1, 4)


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Small whole numbers: their sums and products stay far below 2^53, so floats compute with them exactly."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-9, 10, shape).astype(float) for shape in shapes]


def columns_first(X: np.ndarray) -> np.ndarray:
    return X.T.reshape(-1, 1)


# ---------------------------------------------------------------------------------------
# Reshape, left-multiply, reshape back


@pytest.mark.claim("text-2-2-size", shows="holds", by="exact")
@pytest.mark.claim("text-2-2-reshape", shows="holds", by="exact")
@given(widths, channels, channels, seeds)
def test_every_channel_pair_is_preconditioned_alike(k: int, inputs: int, outputs: int, seed: int) -> None:
    """With loops: each spatial kernel, read row by row, is multiplied by the same `k^2 x k^2` matrix."""
    kernel, P = drawn(seed, (k, k, inputs, outputs), (k * k, k * k))
    done = sharing.precondition_kernel(kernel, P)
    assert done.shape == kernel.shape
    for i, o in np.ndindex(inputs, outputs):
        for y, x in np.ndindex(k, k):
            terms = (P[y * k + x, v * k + u] * kernel[v, u, i, o] for v in range(k) for u in range(k))
            assert done[y, x, i, o] == sum(terms)


@pytest.mark.claim("text-2-2-reshape", shows="holds", by="exact")
@given(widths, channels, channels, seeds)
def test_reshape_and_back_changes_nothing(k: int, inputs: int, outputs: int, seed: int) -> None:
    (kernel,) = drawn(seed, (k, k, inputs, outputs))
    matrix = sharing.to_matrix(kernel)
    assert matrix.shape == (k * k, inputs * outputs)
    for y, x, i, o in np.ndindex(kernel.shape):
        assert matrix[y * k + x, i * outputs + o] == kernel[y, x, i, o]
    assert np.array_equal(sharing.to_kernel(matrix, inputs, outputs), kernel)


@pytest.mark.claim("text-2-2-reshape", shows="holds", by="exact")
@pytest.mark.claim("ours-kronecker", shows="holds", by="exact")
@given(widths, channels, channels, seeds)
def test_kronecker_form_on_the_kernel_as_it_lies_in_memory(k: int, inputs: int, outputs: int, seed: int) -> None:
    """`P (x) I` on the raveled kernel; `I (x) P` on the columns one below the other."""
    kernel, P = drawn(seed, (k, k, inputs, outputs), (k * k, k * k))
    done = sharing.precondition_kernel(kernel, P)
    assert done.shape == kernel.shape
    assert np.array_equal(sharing.on_rows_first(P, inputs * outputs) @ kernel.ravel(), done.ravel())
    stacked = sharing.on_columns_first(P, inputs * outputs) @ columns_first(sharing.to_matrix(kernel))
    assert np.array_equal(stacked, columns_first(sharing.to_matrix(done)))


@pytest.mark.claim("ours-kronecker", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "k", "n"), [(2, 2, 2), (2, 1, 3), (3, 2, 2)])
def test_a_shared_factor_is_a_factor_of_the_whole(m: int, k: int, n: int) -> None:
    """`I (x) M M^T = (I (x) M)(I (x) M)^T`: sharing is Eq. (2) with a block-diagonal factor."""
    M, G = sp.Matrix(m, k, sp.symbols(f"m:{m * k}")), sp.Matrix(m, n, sp.symbols(f"g:{m * n}"))
    whole = sp.Matrix(sharing.on_columns_first(M, n))
    long = sp.Matrix(columns_first(np.array(G)))
    shared = hg.factored_step(sp.zeros(m, n), M, G, 1)
    assert (
        hg.factored_step(0 * long, whole, long, 1) - sp.Matrix(columns_first(np.array(shared)))
    ).expand() == 0 * long
    assert (whole * whole.T - sp.Matrix(sharing.on_columns_first(M * M.T, n))).expand() == sp.zeros(m * n, m * n)


# ---------------------------------------------------------------------------------------
# The shared hypergradient


@pytest.mark.claim("ours-shared-hypergradient", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 3), (2, 2, 2), (2, 1, 3)])
def test_shared_hypergradient_is_a_block_trace_by_components(m: int, k: int, n: int) -> None:
    M = sp.Matrix(m, k, sp.symbols(f"m:{m * k}"))
    G, H = (sp.Matrix(m, n, sp.symbols(f"{name}:{m * n}")) for name in "gh")
    long_G, long_H = (sp.Matrix(columns_first(np.array(X))) for X in (G, H))
    whole = hg.hypergradient(long_G, long_H, sp.Matrix(sharing.on_columns_first(M, n)), 1)
    gap = sp.Matrix(sharing.block_trace(whole, n)) - hg.hypergradient(G, H, M, 1)
    assert gap.expand() == sp.zeros(m, k)


@pytest.mark.claim("ours-shared-hypergradient", shows="holds", by="property")
@given(st.data())
def test_shared_hypergradient_is_a_block_trace(data) -> None:
    """Treat the columns as one long vector with a factor of its own, then sum the diagonal blocks."""
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(len(G))), data.draw(scales)
    n = G.shape[1]
    whole = hg.hypergradient(columns_first(G), columns_first(H), sharing.on_columns_first(M, n), lr)
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    shared = hg.hypergradient(G, H, M, lr)
    np.testing.assert_allclose(sharing.block_trace(whole, n) / size, shared / size, atol=1e-14)


@pytest.mark.claim("ours-shared-hypergradient", shows="holds", by="exact")
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), seeds)
def test_block_trace_is_the_adjoint_of_sharing(m: int, k: int, n: int, seed: int) -> None:
    """Why the sum of blocks: `<X, I (x) D> = <block_trace(X), D>`, so it's the chain rule through `M -> I (x) M`."""
    X, D = drawn(seed, (m * n, k * n), (m, k))
    assert np.sum(X * sharing.on_columns_first(D, n)) == np.sum(sharing.block_trace(X, n) * D)


@pytest.mark.claim("text-2-1-separate-m-per-layer", shows="holds", by="exact")
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3), seeds)
def test_eq_4_holds_layer_by_layer(shapes: list[tuple[int, int]], seed: int) -> None:
    """One long parameter vector with a block-diagonal factor against the layers one by one."""
    layers = [drawn(seed + i, (m, k), (m, 1), (m, 1)) for i, (m, k) in enumerate(shapes)]
    Ms, Gs, Hs = zip(*layers, strict=True)
    M, G, H = scipy.linalg.block_diag(*Ms), np.vstack(Gs), np.vstack(Hs)
    lr = 0.25
    step, slope = hg.factored_step(0 * G, M, G, lr), hg.hypergradient(G, H, M, lr)
    row = column = 0
    for one_M, one_G, one_H in layers:
        m, k = one_M.shape
        assert np.array_equal(step[row : row + m], hg.factored_step(0 * one_G, one_M, one_G, lr))
        assert np.array_equal(slope[row : row + m, column : column + k], hg.hypergradient(one_G, one_H, one_M, lr))
        row, column = row + m, column + k


# ---------------------------------------------------------------------------------------
# Cost


def measured_size(k: int, inputs: int, outputs: int) -> tuple[int, int]:
    """Entries of the shared factor and of the whole one, counted on arrays."""
    kernel = np.zeros((k, k, inputs, outputs))
    shared = np.eye(len(sharing.to_matrix(kernel)))
    return shared.size, kernel.size**2


@pytest.mark.claim("text-2-2-size", shows="holds", by="exact")
@pytest.mark.claim("text-2-2-reduces-cost", shows="holds", by="exact")
@given(widths, channels, channels)
def test_sharing_saves_the_square_of_the_number_of_channel_pairs(k: int, inputs: int, outputs: int) -> None:
    shared, whole = sharing.entries_of_shared(k), sharing.entries_of_full(k, inputs, outputs)
    assert (shared, whole) == measured_size(k, inputs, outputs)
    assert whole == shared * (inputs * outputs) ** 2


@pytest.mark.claim("text-2-2-reduces-cost", shows="holds", by="exact")
@pytest.mark.parametrize(("k", "inputs", "outputs"), [(1, 2, 3), (2, 1, 1), (2, 3, 2), (3, 2, 2)])
def test_sharing_saves_multiplications_too(k: int, inputs: int, outputs: int) -> None:
    """Counted while P G runs, shared and whole: less by the number of channel pairs."""
    rows, columns, products = k * k, inputs * outputs, []
    for P, G in (
        (counted(rows, rows), counted(rows, columns)),
        (counted(rows * columns, rows * columns), counted(rows * columns, 1)),
    ):
        Counted.products = 0
        P @ G
        products.append(Counted.products)
    shared, whole = products
    assert whole == shared * inputs * outputs


@pytest.mark.claim("text-2-2-small-k-efficient", shows="holds", by="exact")
@pytest.mark.parametrize(("k", "inputs", "outputs"), [(1, 2, 3), (2, 1, 1), (2, 3, 2), (3, 2, 2)])
def test_multiplications_of_one_shared_step(k: int, inputs: int, outputs: int) -> None:
    """Counted while the products of one FOP step run, against the formula."""
    rows, columns = k * k, inputs * outputs
    G, H, M = counted(rows, columns), counted(rows, columns), counted(rows, rows)
    Counted.products = 0
    M @ (M.T @ G)
    outer = G @ H.T
    (outer + outer.T) @ M
    assert Counted.products == sharing.products_of_shared(k, inputs, outputs)


@pytest.mark.claim("text-2-2-small-k-efficient", shows="holds", by="exact")
@pytest.mark.parametrize(("k", "inputs", "outputs", "pixels"), [(1, 2, 3, 4), (2, 1, 2, 3), (3, 2, 1, 2)])
def test_multiplications_of_a_convolution(k: int, inputs: int, outputs: int, pixels: int) -> None:
    """As products of matrices: patches times kernel, then the slopes by the kernel and by the patches."""
    patches, kernel, slope = counted(pixels, k * k * inputs), counted(k * k * inputs, outputs), counted(pixels, outputs)
    Counted.products = 0
    patches @ kernel
    patches.T @ slope
    slope @ kernel.T
    assert Counted.products == sharing.products_of_convolution(k, inputs, outputs, pixels)


@pytest.mark.claim("text-2-2-small-k-efficient", shows="holds", by="exact")
@pytest.mark.parametrize("network", [counts.all_cnn_c(), counts.resnet18(4)], ids=["All-CNN-C", "ResNet-18"])
def test_cost_on_both_networks(network: list[counts.Layer]) -> None:
    """Numbers to store and products per step, against the network's own, at the paper's batch sizes."""
    batch = 128 if len(network) == 9 else 256
    convolutions = [layer for layer in network if not layer.dense]
    ours = sum(sharing.products_of_shared(x.width, x.inputs, x.outputs) for x in convolutions)
    base = sum(sharing.products_of_convolution(x.width, x.inputs, x.outputs, x.pixels * batch) for x in convolutions)
    assert Fraction(counts.entries_of_spatial_factors(network), counts.parameters(network)) < Fraction(1, 2000)
    assert Fraction(ours, base) < Fraction(1, 1000)
    # It's k that has to be small: over whole kernels one P alone would be larger than all the weights.
    assert all(sharing.entries_of_full(x.width, x.inputs, x.outputs) > x.weights for x in convolutions)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sharing.to_matrix(np.zeros((2, 3, 1, 1))), r"kernel: expected a kernel \[k, k, I, O\]"),
        (lambda: sharing.to_matrix(np.full((1, 1, 1, 1), np.inf)), "kernel: expected finite"),
        (lambda: sharing.to_kernel(np.zeros((3, 2)), 1, 2), r"matrix: expected k\^2 rows, got 3"),
        (lambda: sharing.to_kernel(np.zeros((4, 3)), 1, 2), r"matrix: expected shape \(None, 2\)"),
        (lambda: sharing.precondition_kernel(np.zeros((2, 2, 1, 1)), np.eye(2)), r"P: expected shape \(4, 4\)"),
        (lambda: sharing.block_trace(np.zeros((4, 3)), 2), r"X: expected dimensions that 2 divides"),
        (lambda: sharing.entries_of_shared(0), "k: expected a number in"),
        (lambda: sharing.entries_of_full(3, 0, 1), "inputs: expected a number in"),
    ],
)
def test_bad_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
