"""The process in which a page's work is done, so that pages answer meanwhile: `python -m client.page.work`.

It reads one order as a line of JSON and writes lines of JSON: {"of": [3, 40]}, then {"done": ...} or {"error": ...}.
Nothing of an order stands in its command line, where everybody on the machine could read it. It gives way to all other
work of the machine.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.base.errors import LacunaError

NICE = 5


def main() -> None:
    os.nice(NICE)
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    order = json.loads(sys.stdin.readline())

    def say(**record: Any) -> None:
        print(json.dumps(record), file=out, flush=True)

    def advance(done: int, total: int) -> None:
        say(of=[done, total])

    try:
        say(done={"fill": fill, "send": send}[order["kind"]](order, advance))
    except LacunaError as error:
        say(error=str(error))
    except OSError as error:  # a full disk
        say(error=f"{error.strerror}")


def fill(order: Mapping[str, Any], advance: Any) -> dict[str, Any]:
    """Make what a subject lacks, as `lacuna-site synthesize` does."""
    from client.inference.job import Asked
    from client.inference.synthesize import synthesize
    from shared.model import bundle
    from shared.plan.settings import load_sampler
    from shared.trust.leaving import check_not_recalled

    trust, folder = Path(order["trust"]), Path(order["bundle"])
    key = bundle.read_public_key(trust)
    loaded = bundle.load(folder, trusted=key)
    check_not_recalled(loaded.record["files"][bundle.WEIGHTS]["sha256"], trust, key, f"bundle {folder}")
    asked = Asked(
        targets=order["targets"] or None,
        sampler=None if order["sampler"] is None else load_sampler(order["sampler"]),
        samples=order["samples"],
        seed=order["seed"],
        force=order["force"],
    )
    done = synthesize(loaded, Path(order["subject"]), Path(order["out"]), asked, progress=advance)
    return {"made": list(done.made), "kept": list(done.kept), "remarks": list(done.remarks), "unusual": done.unusual}


def send(order: Mapping[str, Any], advance: Any) -> dict[str, Any]:
    """Send what was made back into the PACS, as `lacuna-site synthesize --dicom STATE --push` does."""
    from client.inference.dicom.send import Back

    subject, auth = Path(order["subject"]), order["auth_file"]
    back = Back.asked(
        Path(order["state"]),
        subject,
        burn_in=order["burn_in"],
        push=order["push"],
        auth_file=None if auth is None else Path(auth),
    )
    assert back is not None
    volumes = {modality: Path(path) for modality, path in order["volumes"].items()}
    series = back.write(volumes, Path(order["out"]) / subject.name / "dicom")
    where = back.send(series, progress=advance)
    return {"images": sum(len(one.files) for one in series), "series": len(series), "where": where}


if __name__ == "__main__":
    main()
