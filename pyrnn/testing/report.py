"""What a check found: a table by op and property, counterexamples as code, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SIGNS = {
    "passed": "passed",
    "failed": "FAILED",
    "not claimed": "–",
    "expected failure": "xfail",
    "unexpected pass": "XPASS",
}


@dataclass(frozen=True)
class Result:
    """What came of one property of one op.

    Attributes
    ----------
    op, name
        Of the op and of the property; ``id`` is both.
    status
        ``"passed"``, ``"failed"``, ``"not claimed"`` (not asked for), ``"expected failure"``, or ``"unexpected pass"``
        of one that was expected to fail.
    reason
        Why it failed, is not claimed, or is expected to fail.
    code
        Of a failure: the smallest counterexample, as code that runs.
    examples
        How many calls were tried.
    """

    op: str
    name: str
    status: str
    reason: str = ""
    code: str = ""
    examples: int = 0

    @property
    def id(self) -> str:
        return f"{self.op}/{self.name}"


@dataclass
class Report:
    """The results of a check. ``print(report)`` shows the table, then each failure with its counterexample.

    Attributes
    ----------
    subject
        The name of what was checked.
    results
        One for each op and property.
    seed, max_examples
        What it was run with: the same ones draw the same calls.
    """

    subject: str
    seed: int
    max_examples: int
    results: list[Result] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed, nothing passed that was expected to fail, and something was tried."""
        return any(r.status == "passed" for r in self.results) and not self.failures

    @property
    def failures(self) -> list[Result]:
        """What failed, or passed against expectation."""
        return [r for r in self.results if r.status in ("failed", "unexpected pass")]

    def __getitem__(self, id: str) -> Result:
        """Return the result of ``"op/property"``."""
        for result in self.results:
            if result.id == id:
                return result
        raise KeyError(id)

    def __repr__(self) -> str:
        return f"<{self._summary()}>"

    def _summary(self) -> str:
        counts = {status: sum(r.status == status for r in self.results) for status in SIGNS}
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return f"{self.subject}: {told or 'nothing was checked'}"

    def table(self) -> str:
        """Return the table by property and op; a property that an op can't have is left blank."""
        ops = list(dict.fromkeys(r.op for r in self.results))
        found = {(r.name, r.op): SIGNS[r.status] for r in self.results}
        rows = [["property", *ops]]
        rows += [
            [name, *(found.get((name, op), "") for op in ops)] for name in dict.fromkeys(r.name for r in self.results)
        ]
        return "\n".join(_aligned(rows))

    def __str__(self) -> str:
        parts = [self.table()]
        for r in self.failures:
            parts.append(f"{r.id}: {r.status}\n  {r.reason}" + (f"\n\n{_indented(r.code)}" if r.code else ""))
        for r in (r for r in self.results if r.status == "expected failure"):
            parts.append(f"{r.id}: fails, as expected: {r.reason}")
        reasons: dict[str, list[str]] = {}
        for r in (r for r in self.results if r.status == "not claimed"):
            reasons.setdefault(r.reason, []).append(r.id)
        if reasons:
            parts.append("\n".join(f"not claimed ({reason}): {', '.join(ids)}" for reason, ids in reasons.items()))
        return "\n\n".join([*parts, self._summary()])

    def to_json(self) -> str:
        """Return everything as JSON."""
        data: dict[str, Any] = {**asdict(self), "ok": self.ok}
        return json.dumps(data, indent=2)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
