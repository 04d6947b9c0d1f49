"""Matrix and convolution parameters: one small preconditioner for many columns, Section 2.2.

A kernel `[k, k, I, O]` becomes a matrix `[k^2, I O]` whose columns are spatial kernels, and one
`P: [k^2, k^2]` multiplies them all. Written for the whole parameter vector, `P` is then a Kronecker
product with the identity, and the gradient of its factor is a sum of diagonal blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fop_theory import checks


def _kernel(name: str, value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 4 or array.shape[0] != array.shape[1]:
        raise ValueError(f"{name}: expected a kernel [k, k, I, O], got shape {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    checks.matrix(name, array.reshape(array.shape[0] ** 2, -1))
    return array


def to_matrix(kernel: Any) -> np.ndarray:
    """Reshape a kernel `[k, k, I, O]` to `[k^2, I O]`: one column for each spatial kernel.

    Args:
        kernel: `[k, k, I, O]`, the layout of TensorFlow; row-major order.

    Returns:
        `[k^2, I O]`.

    Raises:
        ValueError: If `kernel` has another shape or an entry is not finite.
    """
    kernel = _kernel("kernel", kernel)
    k, _, inputs, outputs = kernel.shape
    return kernel.reshape(k * k, inputs * outputs)


def to_kernel(matrix: Any, inputs: int, outputs: int) -> np.ndarray:
    """Reshape a matrix `[k^2, I O]` back to a kernel `[k, k, I, O]`.

    Args:
        matrix: `[k^2, I O]`.
        inputs: Number of input channels I.
        outputs: Number of output channels O.

    Returns:
        `[k, k, I, O]`.

    Raises:
        ValueError: If the number of rows is no square or the number of columns is not I O.
    """
    checks.sizes(inputs=inputs, outputs=outputs)
    matrix = checks.matrix("matrix", matrix, shape=(None, inputs * outputs))
    k = round(len(matrix) ** 0.5)
    if k * k != len(matrix):
        raise ValueError(f"matrix: expected k^2 rows, got {len(matrix)}")
    return matrix.reshape(k, k, inputs, outputs)


def precondition_kernel(kernel: Any, P: Any) -> np.ndarray:
    """Section 2.2: reshape a kernel's gradient to `[k^2, I O]`, left-multiply it by P, reshape it back.

    Args:
        kernel: Gradient of a kernel, `[k, k, I, O]`.
        P: Spatial preconditioner `[k^2, k^2]`.

    Returns:
        `[k, k, I, O]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    kernel = _kernel("kernel", kernel)
    k, _, inputs, outputs = kernel.shape
    P = checks.matrix("P", P, shape=(k * k, k * k))
    return to_kernel(P @ to_matrix(kernel), inputs, outputs)


def on_rows_first(P: Any, columns: int) -> np.ndarray:
    """The matrix by which `X -> P X` acts on the entries of X read row by row: `P (x) I`.

    Args:
        P: `[m, m]` or `[m, k]`.
        columns: Number of columns of X.

    Returns:
        `[m columns, m columns]` (or `[m columns, k columns]`).

    Raises:
        ValueError: If P is no matrix of finite numbers.
    """
    checks.sizes(columns=columns)
    P = np.asarray(checks.matrix("P", P))
    return np.kron(P, np.eye(columns, dtype=int))


def on_columns_first(P: Any, columns: int) -> np.ndarray:
    """The matrix by which `X -> P X` acts on vec(X), the columns of X one below the other: `I (x) P`.

    Args:
        P: `[m, m]` or `[m, k]`.
        columns: Number of columns of X.

    Returns:
        Block diagonal, with `columns` copies of P.

    Raises:
        ValueError: If P is no matrix of finite numbers.
    """
    checks.sizes(columns=columns)
    P = np.asarray(checks.matrix("P", P))
    return np.kron(np.eye(columns, dtype=int), P)


def block_trace(X: Any, blocks: int) -> np.ndarray:
    """Sum of the diagonal blocks of X: what a matrix does to a factor that all blocks share.

    It's the adjoint of `on_columns_first`: `<X, I (x) dM> = <block_trace(X), dM>`.

    Args:
        X: `[m blocks, k blocks]`.
        blocks: Number of diagonal blocks.

    Returns:
        `[m, k]`.

    Raises:
        ValueError: If a dimension of X is no multiple of `blocks`.
    """
    checks.sizes(blocks=blocks)
    X = np.asarray(checks.matrix("X", X))
    if X.shape[0] % blocks or X.shape[1] % blocks:
        raise ValueError(f"X: expected dimensions that {blocks} divides, got shape {X.shape}")
    m, k = X.shape[0] // blocks, X.shape[1] // blocks
    return np.einsum("cicj->ij", X.reshape(blocks, m, blocks, k))


def entries_of_shared(k: int) -> int:
    """Entries of a full spatial factor, `[k^2, k^2]`: `k^4`.

    Args:
        k: Width of the kernel.

    Raises:
        ValueError: If k is smaller than one.
    """
    checks.sizes(k=k)
    return k**4


def entries_of_full(k: int, inputs: int, outputs: int) -> int:
    """Entries of a factor for the whole kernel, `[k^2 I O, k^2 I O]`.

    Args:
        k: Width of the kernel.
        inputs: Number of input channels.
        outputs: Number of output channels.

    Raises:
        ValueError: If a number is smaller than one.
    """
    checks.sizes(k=k, inputs=inputs, outputs=outputs)
    return (k * k * inputs * outputs) ** 2


def products_of_shared(k: int, inputs: int, outputs: int) -> int:
    """Multiplications of one shared FOP step: `M (M^T G)`, then `G H^T`, then `(S) M`.

    The symmetric `S = G H^T + (G H^T)^T` needs one product, not two.

    Args:
        k: Width of the kernel.
        inputs: Number of input channels.
        outputs: Number of output channels.

    Raises:
        ValueError: If a number is smaller than one.
    """
    checks.sizes(k=k, inputs=inputs, outputs=outputs)
    return 3 * k**4 * inputs * outputs + k**6


def products_of_convolution(k: int, inputs: int, outputs: int, pixels: int) -> int:
    """Multiplications of a convolution's forward pass and both its backward passes.

    Args:
        k: Width of the kernel.
        inputs: Number of input channels.
        outputs: Number of output channels.
        pixels: Number of output positions, counted over the whole batch.

    Raises:
        ValueError: If a number is smaller than one.
    """
    checks.sizes(k=k, inputs=inputs, outputs=outputs, pixels=pixels)
    return 3 * k * k * inputs * outputs * pixels
