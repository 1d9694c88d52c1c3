"""Numbers as a reader meets them: a unit, the digits that mean something, and never a NaN or an infinity."""

import math

MISSING = "n/a"
NOT_RUN = "not run"
_GAP = "\u202f"  # narrow and unbreakable: between a number and its unit
MINUS = "\u2212"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
_BINARY = ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


def is_number(value: float | None) -> bool:
    """True for what can be drawn and written: neither None, NaN nor infinite."""
    return value is not None and math.isfinite(value)


def significant(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits; powers of ten only beyond a million or below a ten-thousandth."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent_text = f"{abs(value):.{digits - 1}e}".split("e")
    exponent = int(exponent_text)
    sign = MINUS if value < 0 else ""
    if not -4 <= exponent <= 6:
        return f"{sign}{mantissa}{_GAP}×{_GAP}10{str(exponent).translate(_SUPERSCRIPT)}"
    return sign + _grouped(f"{abs(value):.{max(0, digits - 1 - exponent)}f}")


def short(value: float) -> str:
    """As significant(), without trailing zeros: for ticks."""
    text = significant(value, 3)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def percent(fraction: float | None, digits: int = 1) -> str:
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    return f"{_fixed(100 * fraction, digits)}{_GAP}%"


def with_error(fraction: float, error: float) -> str:
    """A share and its standard error, both in percent: 97.3 ± 0.8 %."""
    if not math.isfinite(fraction) or not math.isfinite(error):
        return percent(fraction)
    digits = error_digits(error)
    return f"{_fixed(100 * fraction, digits)}\u00a0±\u00a0{_fixed(100 * error, digits)}{_GAP}%"


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of two shares, in percentage points, signed."""
    if difference is None or not math.isfinite(difference):
        return MISSING
    text = _fixed(100 * abs(difference), digits)
    sign = "" if float(text) == 0 else ("+" if difference > 0 else MINUS)
    return f"{sign}{text}{_GAP}pp"


def decimal(value: float | None, digits: int) -> str:
    """`digits` decimals, with a narrow gap between thousands."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{abs(value):.{digits}f}"
    return (MINUS if value < 0 and float(text) else "") + _grouped(text)


def error_digits(error: float) -> int:
    """Decimals, in percent, that a standard error leaves meaningful: two below 0.1 pp, else one."""
    return 2 if 0 < error < 0.001 else 1


def signed(value: float | None, digits: int = 3) -> str:
    text = significant(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def times(ratio: float | None) -> str:
    return MISSING if not is_number(ratio) else f"{significant(ratio, 3 if ratio and ratio >= 1 else 2)}{_GAP}×"


def byte_unit(size: float) -> tuple[int, str]:
    """The largest binary unit that fits into size: its bytes and its name."""
    return next(((unit, name) for unit, name in _BINARY if abs(size) >= unit), (1, "B"))


def byte_size(size: float | None) -> str:
    """Bytes in binary units: 1 MiB = 1024 KiB."""
    if size is None or not math.isfinite(size):
        return MISSING
    unit, name = byte_unit(size)
    return f"{_digits(size / unit) if unit > 1 else f'{size:.0f}'}{_GAP}{name}"


def duration(seconds: float | None) -> str:
    """Milliseconds below a second, then seconds, minutes, hours."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{_digits(1000 * seconds)}{_GAP}ms"
    if seconds < 120:
        return f"{_digits(seconds)}{_GAP}s"
    if seconds < 7200:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}{_GAP}min {rest:02d}{_GAP}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{_grouped(str(hours))}{_GAP}h {minutes:02d}{_GAP}min"


def count(number: float | None) -> str:
    """Whole numbers in full up to a million, then three digits and M, G or T."""
    if number is None or not math.isfinite(number):
        return MISSING
    for unit, name in _SCALES:
        if abs(number) >= unit:
            return f"{_digits(number / unit)}{_GAP}{name}"
    return _grouped(f"{number:.0f}")


def in_words(number: int) -> str:
    """For running text: words up to twelve."""
    return _WORDS[number] if 0 < number < len(_WORDS) else count(number)


def rate(per_second: float | None) -> str:
    return MISSING if per_second is None or not math.isfinite(per_second) else f"{_digits(per_second)}/s"


def _digits(value: float) -> str:
    """Three significant digits, never fewer than the whole part."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return _grouped(f"{value:.{min(decimals, 3)}f}")


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", MINUS)


def _grouped(text: str) -> str:
    """A narrow gap between thousands, from five digits on."""
    whole, dot, rest = text.partition(".")
    if len(whole) > 4:
        whole = f"{int(whole):,}".replace(",", _GAP)
    return whole + dot + rest
