"""Finding: one thing that is wrong, and where."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vrl3data.errors import Source

Severity = Literal["error", "warn", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warn", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `check` is a key of `validation.CHECKS`."""

    check: str
    message: str
    where: Source = field(default_factory=Source)
    severity: Severity = "error"

    def __str__(self) -> str:
        where = str(self.where)
        return f"{self.severity}: {self.check}: {self.message}{f' ({where})' if where else ''}"

    def to_json(self) -> dict[str, Any]:
        where = {key: value for key, value in asdict(self.where).items() if value is not None}
        return {"check": self.check, "severity": self.severity, "message": self.message, **where}
