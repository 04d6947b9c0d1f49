"""At the gradient (1, 1) a diagonal matrix of PP-HD turns, a full matrix of FOP does not."""

from fractions import Fraction


def cos2(a, b):
    """Squared cosine of the angle between two vectors."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return Fraction(dot**2, sum(x * x for x in a) * sum(y * y for y in b))


g = (1, 1)
P = ((2, 1), (1, 2))  # M M^T for M = ((1, 1, 0), (1, 0, 1))
full = cos2(g, tuple(sum(p * x for p, x in zip(row, g, strict=True)) for row in P))
diagonal = cos2(g, (1 * g[0], 2 * g[1]))  # diag(1, 2)
assert full == 1
assert diagonal < 1
print(f"cos^2 of the turn at {g}: full P {full}, diagonal P {diagonal}")
