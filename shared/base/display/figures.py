"""Numbers as people read them."""

import time


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`0.4 s`, `1:05`, `2:03:04`"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """`999 B`, `1.5 kB`, `3.2 MB`"""
    power = 0
    while count >= 999.5 and power < 4:
        count, power = count / 1000, power + 1
    return f"{count:.{int(power > 0 and count < 99.95)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def moment(seconds: float) -> str:
    """Seconds since 1970 as a date and a time of day, here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
