"""A diagonal matrix turns a gradient, and so does the first step of Adam and of Adagrad."""

from fractions import Fraction


def cos2(a, b):
    """Squared cosine of the angle between two vectors."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return Fraction(dot**2, sum(x * x for x in a) * sum(y * y for y in b))


cosine_squared = cos2((1, 1), (1 * 1, 2 * 1))  # diag(1, 2) times (1, 1)
assert cosine_squared == Fraction(9, 10)
g = (1, 7)
first_step = tuple(x // abs(x) for x in g)  # g / sqrt(g^2), both optimizers' epsilon zero
assert cos2(g, first_step) == Fraction(16, 25)
print(f"cos^2 of the turn: diag(1, 2) at (1, 1): {cosine_squared}; Adam's first step at {g}: {cos2(g, first_step)}")
