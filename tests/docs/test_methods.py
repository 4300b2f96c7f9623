"""docs/methods: every method has its page, and what stands there to be typed is understood."""

import re
import shlex
from pathlib import Path

import pytest

from shared.methods import METHODS
from shared.plan.config import load

pytestmark = pytest.mark.slow  # left out of `make fast`

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"
PAPERS = ("amm_diff", "aca_diff", "any2all", "mmdm")
PARTS = ("What the paper says", "What the paper leaves open", "Federated", "Run it, and its oracles")


def test_every_method_has_a_page_and_every_baseline_a_heading() -> None:
    told = (PAGES / "baselines.md").read_text(encoding="utf-8").lower()
    names = {"bbdm": "bbdm", "ddpm": "conditional ddpm", "ldm": "ldm", "pix2pix": "pix2pix"}
    assert set(METHODS) == {*PAPERS, *names}
    assert all(f"## {heading}" in told for heading in names.values())


@pytest.mark.parametrize("method", PAPERS)
def test_a_papers_page_has_all_its_parts_in_order(method: str) -> None:
    headings = re.findall(r"^## (.+)$", (PAGES / f"{method}.md").read_text(encoding="utf-8"), re.MULTILINE)
    at = [next(i for i, heading in enumerate(headings) if heading.startswith(part)) for part in PARTS]
    assert at == sorted(at)


@pytest.mark.parametrize("method", PAPERS)
def test_the_keys_of_a_page_are_keys_of_the_configuration(method: str) -> None:
    """Each ablation by itself, on the small size."""
    page = (PAGES / f"{method}.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if re.match(r"    (lacuna |ablations:)", line)]
    assert len(lines) == 1 + page.count("\n    ablations:")
    runs = [part.split() for line in lines if "lacuna " in line for part in line.split("&&")]
    trained = [words for words in runs if words[1] in ("simulate", "pretrain")]
    assert trained
    for words in trained:
        config = load([word for word in shlex.split(" ".join(words[2:])) if "=" in word])
        assert config.method.name == method
    for line in (line for line in lines if "ablations:" in line):
        for ablation in re.split(r" {2,}", line.partition("ablations:")[2].strip()):
            word, *more = ablation.split()
            name = word.partition("=")[2] if word.startswith("method=") else method
            words = more if word.startswith("method=") else [word, *more]
            assert load([f"method={name}", *words]).method.name == name
