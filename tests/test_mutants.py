"""The property kit is right if it catches what is wrong: every mutant, in every op that it breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant, table

from pyrnn.testing import PROPERTIES
from pyrnn.testing.check import run_property
from pyrnn.testing.subject import BackendSubject

EXAMPLES = 100  # the default of check_backend
CASES = [pytest.param(mutant, op, id=f"{mutant.name}-{op}") for mutant in MUTANTS for op in mutant.ops]


@pytest.mark.parametrize(("mutant", "op"), CASES)
def test_every_mutant_is_caught_by_the_property_that_means_its_fault(mutant: Mutant, op: str) -> None:
    result = run_property(
        BackendSubject(mutant.make()), op, PROPERTIES[mutant.caught_by], EXAMPLES, seed=0, shrink=False
    )
    assert result.status == "failed", f"{op}: {mutant.fault}: {result}"


def test_mutants_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_documentation_shows_just_these_mutants() -> None:
    page = Path(__file__).parent.parent / "docs" / "property-kit.md"
    assert table() in page.read_text(encoding="utf-8"), "put what `python tests/mutants.py` prints there"
