"""A determinant near zero and a matrix as far from singular as one can be: a tenth of the identity."""

from fractions import Fraction

eigenvalues = [Fraction(1, 10)] * 9
determinant = Fraction(1)
for eigenvalue in eigenvalues:
    determinant *= eigenvalue
condition = max(eigenvalues) / min(eigenvalues)
inverse = [1 / eigenvalue for eigenvalue in eigenvalues]

assert determinant == Fraction(1, 10**9)
assert condition == 1
assert all(x * y == 1 for x, y in zip(eigenvalues, inverse, strict=True))
print(f"P = I/10 in nine dimensions: determinant {determinant}, condition {condition}, inverse {inverse[0]} I")
