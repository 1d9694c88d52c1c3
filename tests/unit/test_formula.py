import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbserve.formula import FormulaError, Value, evaluate, evaluate_number

NAMES: dict[str, Value] = {"depth": 12, "mlp": None, "width": 128, "codes": "simplex", "dropout": 0.1}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("mlp or 4 * width", 512),
        ("1 if codes == 'unit_norm' else depth // 5", 2),
        ("width % 7 == 2 and dropout > 0", True),
        ("ln(0.5 * sqrt(9)) + 1", math.log(1.5) + 1),
        ("-(width - 1) / 2", -63.5),
        ("max(1, width // 6)", 21),
        ("not mlp", True),
    ],
)
def test_a_formula_has_its_arithmetic_value(expression: str, value: Value) -> None:
    assert evaluate(expression, NAMES) == value


@given(st.integers(1, 10**30), st.integers(1, 10**30))
def test_integers_stay_exact_at_any_size(a: int, b: int) -> None:
    assert evaluate("a * b + a // b - a % b", {"a": a, "b": b}) == a * b + a // b - a % b


@pytest.mark.parametrize(
    "expression",
    [
        "unknown + 1",
        "1 / 0",
        "ln(0)",
        "width +",
        "",
        "__import__('os')",
        "width.real",
        "[1][0]",
        "(lambda: 1)()",
        "9 ** 999999999",
        "1 < width < 3",
        "codes * 2 - 1",
        "min(default=1)",
    ],
)
def test_what_is_not_arithmetic_or_has_no_value_is_refused(expression: str) -> None:
    with pytest.raises(FormulaError):
        evaluate(expression, NAMES)


@pytest.mark.parametrize("expression", ["codes", "width > 1", "mlp", "1e308 * 10"])
def test_a_number_is_finite_and_a_number(expression: str) -> None:
    with pytest.raises(FormulaError, match="not a number"):
        evaluate_number(expression, NAMES)
