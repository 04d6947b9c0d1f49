"""Eq. (23)'s second part, multiplication by M M^T, is no rotation: M = (1, 0) shortens (1, 1) and kills (0, 1)."""

from fractions import Fraction

M = (Fraction(1), Fraction(0))


def multiplied(g):
    """M M^T g."""
    along = sum(x * y for x, y in zip(M, g, strict=True))
    return tuple(x * along for x in M)


for g in ((Fraction(1), Fraction(1)), (Fraction(0), Fraction(1))):
    before, after = sum(x * x for x in g), sum(x * x for x in multiplied(g))
    print(f"|g|^2 = {before}, |M M^T g|^2 = {after}")
    assert after < before  # A rotation keeps every length.
