"""The product of a matrix with itself needn't be positive semi-definite: M M = -I for a quarter turn."""

M, g = [[0, 1], [-1, 0]], [3, 5]
two = range(2)
P = [[sum(M[i][s] * M[s][j] for s in two) for j in two] for i in two]
Pg = [sum(P[i][j] * g[j] for j in two) for i in two]
assert P == [[-1, 0], [0, -1]]
assert Pg == [-3, -5]
print(f"M M = {P}; the gradient {g} becomes {Pg}")
