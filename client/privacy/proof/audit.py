"""`lacuna-site audit privacy` and `lacuna audit privacy`: the six tests run and shown, and how often they are wrong."""

import json
import time
from collections import Counter
from collections.abc import Sequence

from rich.text import Text
from scipy import stats

from client.privacy.proof import proof as audit
from client.privacy.proof.made_up_site import Make, engine_of
from client.privacy.proof.proof import Finding, run_audit
from shared.base.display import terminal
from shared.base.display.progress import Bar, Progress
from shared.base.errors import RunFailed


def audit_privacy(*, repeat: int, as_json: bool, bar: Bar, make: Make = engine_of) -> None:
    """Run the audit and print what it found; RunFailed where anything failed."""
    started = time.process_time()
    audits: list[list[Finding]] = []
    with bar("auditing") as advance:
        for number in range(repeat):
            audits.append(run_audit(make, progress=_part(advance, number, repeat)))
    seconds = time.process_time() - started
    failed = Counter(f"{one.test}/{one.name}" for findings in audits for one in findings if not one.passed)
    alarms = sum(not all(one.passed for one in findings) for findings in audits)
    if as_json:
        print(json.dumps(_record(audits, alarms, failed, seconds), indent=1))
    elif repeat == 1:
        _show(audits[0])
    else:
        print(f"{alarms} of {repeat} audits failed; {seconds / repeat:.1f} CPU seconds each")
        print(f"of a right engine, at most {most(alarms, repeat):.2%} fail (95 % confidence)")
    if alarms:
        names = ", ".join(f"{name} ({n})" if repeat > 1 else name for name, n in sorted(failed.items()))
        raise RunFailed(f"{alarms} of {repeat} audits of the private engine failed: {names}")


def most(alarms: int, audits: int) -> float:
    """The largest chance of an alarm that so many alarms leave possible, at 95 %: about three in `audits` for none."""
    return 1.0 if alarms == audits else float(stats.beta.ppf(0.95, alarms + 1, audits - alarms))


def _part(advance: Progress, number: int, of: int) -> Progress:
    return lambda done, total: advance(number * total + done, of * total)


def _record(
    audits: Sequence[Sequence[Finding]], alarms: int, failed: Counter[str], seconds: float
) -> dict[str, object]:
    return {
        "passed": alarms == 0,
        "audits": len(audits),
        "alarms": alarms,
        "alarm_rate_at_most": most(alarms, len(audits)),
        "failed": dict(sorted(failed.items())),
        "cpu_seconds": round(seconds, 1),
        "findings": [
            {
                "test": one.test,
                "name": one.name,
                "figure": round(one.figure, 6),
                "limit": round(one.limit, 6),
                "passed": one.passed,
                "line": one.line,
            }
            for one in audits[-1]
        ],
    }


def _show(findings: Sequence[Finding]) -> None:
    rows = [
        (
            one.test if number == 0 or findings[number - 1].test != one.test else "",
            one.line,
            f"{one.figure:.4g}",
            f"{one.limit:.4g}",
            Text("ok", style="green") if one.passed else Text("FAILED", style="bold red"),
        )
        for number, one in enumerate(findings)
    ]
    title = "The private engine: no figure may pass its limit"
    terminal.table(title, ("test", "what", "figure", "limit", ""), rows, left=(0, 1, 4))
    counts = Counter(one.test for one in findings if not one.passed)
    passed = [name for name in audit.TESTS if name not in counts]
    print(f"{len(passed)} of {len(audit.TESTS)} tests passed: {', '.join(passed)}")
