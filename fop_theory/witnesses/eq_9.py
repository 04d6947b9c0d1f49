"""Eq. (9) adds a number to a matrix, and neither way of adding them gives the derivative."""

g, h, M = [1, 0], [1, 1], [[0, 1], [0, 0]]  # J = g . theta, learning rate 1
two = range(2)


def change_by(p, q):
    """Derivative of -g' M M' h by the entry M[p][q], by the product rule, entry by entry."""
    left = sum(g[i] * (i == p) * M[j][q] * h[j] for i in two for j in two)
    right = sum(g[i] * M[i][q] * (j == p) * h[j] for i in two for j in two)
    return -(left + right)


true = [[change_by(p, q) for q in two] for p in two]
number = -sum(g[i] * M[i][j] * h[j] for i in two for j in two)  # g'(-M h)
matrix = [[-g[i] * sum(M[j][s] * h[s] for s in two) for j in two] for i in two]  # g(-h'M')
assert true == [[0, -2], [0, -1]]
assert all(true != [[matrix[i][j] + number * (i == j or full) for j in two] for i in two] for full in (0, 1))
print(f"true {true}; Eq. (9): {number} + {matrix}")
