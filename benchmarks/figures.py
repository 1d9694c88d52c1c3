"""How figures are written."""


def short(value: float) -> str:
    """Three figures at most, behind which nobody is to look."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
