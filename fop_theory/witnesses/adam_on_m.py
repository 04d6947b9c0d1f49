"""Adam's first step on M moves each entry by its sign: M gains a rank that the multiplicative update never gives."""

from fractions import Fraction

M = [[1, 2], [1, 2]]
g, h = (1, 1), (1, -1)
S = [[g[i] * h[j] + h[i] * g[j] for j in (0, 1)] for i in (0, 1)]
SM = [[sum(S[i][s] * M[s][j] for s in (0, 1)) for j in (0, 1)] for i in (0, 1)]


def determinant(A):
    """Of a 2x2 matrix."""
    return A[0][0] * A[1][1] - A[0][1] * A[1][0]


plain = [[M[i][j] + Fraction(1, 3) * SM[i][j] for j in (0, 1)] for i in (0, 1)]
adam = [[M[i][j] + (SM[i][j] > 0) - (SM[i][j] < 0) for j in (0, 1)] for i in (0, 1)]
assert (determinant(M), determinant(plain), determinant(adam)) == (0, 0, 2)
print(f"det M: {determinant(M)} before, {determinant(plain)} after a plain step, {determinant(adam)} after Adam's")
