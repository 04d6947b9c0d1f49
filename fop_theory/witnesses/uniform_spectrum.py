"""Curvatures 1 and 100: with P = I, a perfectly uniform spectrum, the two rates of convergence are far apart."""

from fractions import Fraction

curvatures = [Fraction(1), Fraction(100)]
uniform = ([Fraction(1), Fraction(1)], Fraction(1, 100))
inverse = ([1 / h for h in curvatures], Fraction(1, 2))


def factors(eigenvalues, lr):
    """By which one step multiplies the error in each direction."""
    return [1 - lr * p * h for p, h in zip(eigenvalues, curvatures, strict=True)]


rates = {"uniform P": factors(*uniform), "inverse Hessian": factors(*inverse)}
assert rates["uniform P"] == [Fraction(99, 100), 0]
assert rates["inverse Hessian"] == [Fraction(1, 2), Fraction(1, 2)]
print({name: [str(x) for x in both] for name, both in rates.items()})
