"""What a run directory holds, read once; stages that are missing are simply absent."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from core.run import read_manifest
from eval.results import RESULTS_FILE, Result, read_results


class ReportError(ValueError):
    """A report that cannot be made."""


class RunFiles(NamedTuple):
    """The finished stages of a run."""

    path: Path
    manifests: dict[str, dict[str, Any]]
    """By directory below the run (`lam`, `finetune/no_pretraining_25`), in the order they finished."""
    metrics: dict[str, list[dict[str, float]]]
    """Lines of metrics.jsonl of the stages that trained something."""
    audit: dict[str, Any]
    """Content of audit/audit.json."""
    results: list[Result]
    contact_sheet: Path | None
    """A picture of some episodes."""

    def summary(self, stage: str) -> dict[str, Any]:
        """What the stage said of itself at its end."""
        return dict(self.manifests.get(stage, {}).get("summary", {}))

    def below(self, stage: str) -> dict[str, dict[str, Any]]:
        """Manifests of a stage and of all runs in its directory."""
        return {name: manifest for name, manifest in self.manifests.items() if name.split("/")[0] == stage}


def read_run(path: str | Path) -> RunFiles:
    """Everything the report is made of.

    Raises:
        ReportError: the directory holds no finished stage.
    """
    path = Path(path)
    found = [file.parent for pattern in ("*", "*/*") for file in path.glob(f"{pattern}/manifest.json")]
    stages = [stage for stage in found if ".old-" not in str(stage.relative_to(path))]
    if not stages:
        raise ReportError(
            f"{path} holds no finished stage; make a run with scripts/quickstart.sh and name its directory"
        )
    manifests = {str(stage.relative_to(path)): read_manifest(stage) for stage in stages}
    in_order = dict(sorted(manifests.items(), key=lambda item: (str(item[1].get("finished", "")), item[0])))
    metrics = {name: _json_lines(path / name / "metrics.jsonl") for name in in_order}
    audit, results = path / "audit" / "audit.json", path / "evaluate" / RESULTS_FILE
    return RunFiles(
        path=path,
        manifests=in_order,
        metrics={name: lines for name, lines in metrics.items() if lines},
        audit=json.loads(audit.read_text()) if audit.is_file() else {},
        results=read_results(results) if results.is_file() else [],
        contact_sheet=next(iter(sorted((path / "episodes").glob("*.png"))), None),
    )


def _json_lines(path: Path) -> list[dict[str, float]]:
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]
