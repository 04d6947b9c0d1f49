"""The look of every figure: one style, one colour a method, theory dashed and measurement solid."""

from __future__ import annotations

from pathlib import Path

#: One colour a method, the same in every chapter (Okabe and Ito 2008).
COLORS = {
    "FOP": "#0072B2",
    "FOP-norm": "#56B4E9",
    "SGD": "#D55E00",
    "momentum": "#E69F00",
    "Adam": "#009E73",
    "S-HD": "#CC79A7",
    "PP-HD": "#8C6D31",
    "theory": "#000000",
}
#: Line of a curve that theory predicts; measurements are solid.
THEORY = {"color": COLORS["theory"], "linestyle": "--", "linewidth": 1.2}


def use_style() -> None:
    """Set the book's style, and SVG as the format of figures when a notebook is running."""
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).with_name("fop.mplstyle"))
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        # Without a date in the file, the same numbers give the same bytes.
        set_matplotlib_formats("svg", metadata={"Date": None})
