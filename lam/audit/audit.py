"""The audit stage: are latent actions about actions? One page and one JSON, for one model or several side by side."""

from typing import Any

from core.drawing import require_drawing
from core.run import Stage, read_manifest, say, write_json, write_text
from core.store import Store
from lam.audit.bench import Bench, lam_paths, open_bench
from lam.audit.findings import findings
from lam.audit.measure import measured
from lam.audit.page import render
from lam.audit.sample import Sample, sample_codes, take_sample
from lam.audit.sections.numbers import Number, Section, finite
from lam.audit.settings import AuditConfig
from lam.checkpoint import LamFacts, load_lam
from lam.model import LatentActionModel
from lam.sources import open_features

__all__ = ["AuditConfig", "Sample", "audit", "sample_codes", "take_sample"]

PAGE, RESULTS = "page.html", "audit.json"
RUN_OF = "train_lam"


def audit(config: AuditConfig) -> None:
    """Run the stage: write page.html and audit.json.

    Raises:
        ValueError: models, episodes and features do not fit together, or cannot be audited.
    """
    require_drawing()
    models = open_models(config)
    store = Store.open(config.data)
    facts = next(iter(models.values()))[1]
    source = open_features(store, config.features, facts.encoder)
    if source.encoder_fingerprint != facts.encoder_fingerprint:
        raise ValueError(
            f"features in {config.features or 'memory'} come from encoder {source.encoder_fingerprint}, the latent "
            f"action models from {facts.encoder_fingerprint}; give the cache that was made with theirs: {facts.encoder}"
        )
    inputs = {"store": store.fingerprint, "features": source.fingerprint}
    stage = Stage.open(config.out, "audit_lam", config, inputs | {n: f.fingerprint for n, (_, f) in models.items()})
    if stage.is_done:
        return
    bench = open_bench(config, models, store, source, stage.path)
    sections = measured(bench)
    result = {
        "action": bench.action,
        "rows": rows_of(bench, sections),
        "findings": findings(bench, sections),
        "sections": {section.key: section.as_json() for section in sections},
        "facts": bench.facts(),
    }
    write_json(stage.path / RESULTS, result)
    write_text(stage.path / PAGE, render(bench, sections, result))
    for sentence in result["findings"]:
        say(f"audit: {sentence}")
    stage.finish({f"{row['arm']}_bits": row["bits"] for row in result["rows"]} | {"page": PAGE})


def open_models(config: AuditConfig) -> dict[str, tuple[LatentActionModel, LamFacts]]:
    """The models by name of their row.

    Raises:
        ValueError: none is given, one is no run of scripts/train_lam.py or has no codes, or they differ in form.
    """
    models = {}
    for name, path in lam_paths(config).items():
        if (kind := read_manifest(path)["name"]) != RUN_OF:
            raise ValueError(f"{path} is a run of {kind}, not of {RUN_OF}; give a latent action model")
        models[name] = load_lam(path)
        model = models[name][0]
        if model.bottleneck.num_codes is None:
            raise ValueError(
                f"{path} has bottleneck {model.config.bottleneck}, which has no codes; audit models with vq, vq_ema or "
                "fsq, or give continuous latents to scripts/estimate_mi.py"
            )
    if len({facts.encoder_fingerprint for _, facts in models.values()}) > 1:
        raise ValueError("these models were trained on features of different encoders; audit them one by one")
    forms = {(facts.one_gap_s(config.gap_s), facts.pool) for _, facts in models.values()}
    if len(forms) != 1:
        raise ValueError(f"these models differ in (gap_s, pool): {sorted(forms)}; audit them one form at a time")
    return models


def rows_of(bench: Bench, sections: list[Section]) -> list[dict[str, Any]]:
    """The main numbers of each row in one place, as the report of a run shows them."""
    tables = {table.key: table.rows for section in sections for table in section.tables}
    rows = []
    for name, information in tables.get("information", {}).items():
        decoding = tables["decoding"][name]
        nmse, bits = decoding["linear"], information["bits"]
        dims = {dim: decoding.get(f"linear {dim}") for dim in bench.dims}
        rows.append(
            {
                "arm": name,
                "probe_nmse": nmse.value,
                "probe_nmse_ci95": list(nmse.ci95),
                "probe_nmse_by_dim": {dim: number and number.value for dim, number in dims.items()},
                "n": bits.n,
                "episodes": bits.episodes,
                "bits": bits.value,
                "bits_ci95": list(bits.ci95),
                "null_bits": bits.null.value,
                "null_p95": bits.null.p95,
                "linear_bits": information["linear_bits"].value,
                "entropy_bits": _value(information.get("entropy")),
                "perplexity": _value(information.get("perplexity")),
            }
        )
    return rows


def _value(number: Number | None) -> float | None:
    return None if number is None else finite(number.value)
