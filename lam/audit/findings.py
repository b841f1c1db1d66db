"""What an audit found, in sentences that follow from its numbers."""

from collections.abc import Mapping

from lam.audit.bench import Bench
from lam.audit.sections.numbers import Number, Section
from lam.audit.subjects import CEILINGS, DIFFERENCE, FLOOR

LEAST_NMSE_INFLATION = 0.01
Rows = Mapping[str, Mapping[str, Number]]


def findings(bench: Bench, sections: list[Section]) -> list[str]:
    """At most one sentence a question; questions that could not be asked are left out."""
    tables: dict[str, Rows] = {table.key: table.rows for section in sections for table in section.tables}
    models = list(bench.manifests)
    found: list[str] = []
    if "information" in tables:
        found += about_action(tables["information"], models, bench.supervised)
    else:
        reasons = next((s.left_out for s in sections if s.key == "information"), [])
        found.append(f"Whether codes are about the action is not known. {' '.join(reasons)}")
    if "few_labels" in tables:
        found += about_labels(tables["few_labels"], models)
    if "views" in tables:
        found += about_view(tables["views"], models)
    if "nuisances" in tables:
        found += about_nuisances(tables["nuisances"], models)
    found += about_leakage(tables, models)
    found += about_codebook({s.key: s.facts for s in sections}.get("codebook", {}).get("usage", {}), models)
    found += about_split({s.key: s.facts for s in sections}.get("hygiene", {}).get("overlap", {}), tables)
    return found


def about_action(rows: Rows, models: list[str], supervised: list[str]) -> list[str]:
    """Bits of each model, its place between floor and ceiling, and what no bottleneck would tell."""
    ranked = sorted(models, key=lambda name: -rows[name]["bits"].value)
    words = [f"{name} {span(rows[name]['bits'])}" + " (saw actions)" * (name in supervised) for name in ranked]
    found = [
        f"About the action, codes tell {', '.join(words)} bits; on shuffled actions at most "
        f"{max(rows[name]['bits'].null.p95 or 0.0 for name in models):.2f}."
    ]
    empty = [name for name in models if rows[name]["bits"].ci95[0] <= max(rows[name]["bits"].null.p95 or 0.0, 0.0)]
    top = [rows[name]["bits"] for name in CEILINGS if name in rows]
    if top and all(one.ci95[0] <= max(one.null.p95 or 0.0, 0.0) for one in top):
        found.append(
            "Even inverse dynamics, trained with actions on the frozen features, is not shown to tell anything: there "
            "is too little data to judge by. (An estimate is a lower bound, so one below zero means zero.)"
        )
    elif empty:
        found.append(f"Not shown to tell anything about the action: {', '.join(empty)}.")
    scale = [(FLOOR, "the same network untrained"), (DIFFERENCE, "the change of the frozen features")]
    scale += [(name, f"inverse dynamics ({name.rsplit('_', 1)[1]})") for name in CEILINGS]
    words = [f"{text} {span(rows[name]['bits'])}" for name, text in scale if name in rows]
    found.append(f"For scale: {', '.join(words)} bits.")
    free = [name for name in ranked if name not in supervised]
    if FLOOR in rows and free:
        floor = rows[FLOOR]["bits"]
        low = [name for name in free if rows[name]["bits"].ci95[0] <= floor.ci95[1]]
        if low:
            found.append(f"Not clearly above the untrained network: {', '.join(low)}.")
    if DIFFERENCE in rows and free:
        plain = rows[DIFFERENCE]["bits"]
        worse = [name for name in free if rows[name]["bits"].ci95[1] < plain.ci95[0]]
        if worse:
            found.append(f"Clearly below the plain change of the frozen features: {', '.join(worse)}.")
    return found


def about_labels(rows: Rows, models: list[str]) -> list[str]:
    """Error with the fewest and with the most labels."""
    words = []
    for name in models:
        if counts := list(rows.get(name, {})):
            few, many = rows[name][counts[0]].value, rows[name][counts[-1]].value
            more = f", {many:.2f} with {counts[-1]}" if len(counts) > 1 else ""
            words.append(f"{name} {few:.2f} with {counts[0]}{more}")
    return [f"Error of decoding by number of labelled transitions (1 is chance): {'; '.join(words)}."] if words else []


def about_view(rows: Rows, models: list[str]) -> list[str]:
    """How far codes name the camera and agree between cameras."""
    words = []
    for name in models:
        row = rows[name]
        named = row.get("camera_accuracy")
        probe = f", camera named in {percent(named.value)} (chance {percent(named.null.value)})" if named else ""
        share = row["view_bits_share"]
        told = f"{name} {percent(share.value)} (between transitions {percent(share.null.value)}), n {share.n}"
        words.append(f"{told}{probe}, kappa {row['kappa'].value:.2f}")
    return [f"About the viewpoint, tokens tell this share of the most possible: {'; '.join(words)}."]


def about_nuisances(rows: Rows, models: list[str]) -> list[str]:
    """Which nuisances codes are shown to tell of beyond the action."""
    words, silent = [], []
    for name in models:
        shown = {key: one for key, one in rows[name].items() if one.ci95[0] > (one.null.p95 or 0.0)}
        told = [f"{key.replace('_', ' ')} {span(one)} (null {one.null.value:.2f})" for key, one in shown.items()]
        words += [f"{name} of {', '.join(told)}"] * bool(told)
        silent += [name] * (not told)
    found = [f"Beyond the action, codes tell (bits): {'; '.join(words)}."] * bool(words)
    known = ", ".join(key.replace("_", " ") for key in next(iter(rows.values())))
    return found + [f"Not shown to tell, beyond the action, of any of {known}: {', '.join(silent)}."] * bool(silent)


def about_leakage(tables: Mapping[str, Rows], models: list[str]) -> list[str]:
    """What equal frames, a shifted picture and another scene do."""
    found = []
    words = [f"{name} {percent(tables['zero_motion'][name]['spread'].value)}" for name in models]
    found.append(
        f"Where nothing moves, encodings still spread by the scene, by this share of what real transitions do: "
        f"{', '.join(words)}."
    )
    if "pixel_shift" in tables:
        words = [f"{name} {percent(tables['pixel_shift'][name]['1'].value)}" for name in models]
        found.append(
            f"A shift of the picture by 1 pixel moves the encoding by this share of the distance of real transitions: "
            f"{', '.join(words)}."
        )
    rows = tables.get("transplant", {})
    moved = [name for name in models if name in rows and {"own", "nearest", "random"} <= set(rows[name])]
    words = [" / ".join(f"{rows[name][key].value:.2f}" for key in ("own", "nearest", "random")) for name in moved]
    if words:
        listed = ", ".join(f"{name} {text}" for name, text in zip(moved, words, strict=True))
        found.append(
            "Decoded with its own code / with that of the most similar action in another scene / with any other, the "
            f"error is, relative to no code: {listed}."
        )
    return found


def about_codebook(usage: Mapping[str, Mapping[str, list]], models: list[str]) -> list[str]:
    """Codes that nothing uses."""
    dead = {name: sum(usage[name]["dead_codes"]) for name in models if name in usage}
    words = [f"{name} {count} of {sum(map(len, usage[name]['histogram']))}" for name, count in dead.items() if count]
    return [f"Codes that no held-out transition has: {', '.join(words)}."] if words else []


def about_split(overlap: Mapping[str, list], tables: Mapping[str, Rows]) -> list[str]:
    """Held-out episodes that training saw, and what random frames would have reported."""
    found = []
    for name, stores in overlap.items():
        shared = sum(len(one["shared_ids"]) for one in stores)
        twice = sum(len(one["same_recordings"]) for one in stores)
        if shared or twice:
            found.append(
                f"{name} was trained on {shared} of the held-out episodes by name and on {twice} that are the same "
                "recording or scene as one of them."
            )
    inflated = {
        name: one
        for name, row in tables.get("inflation", {}).items()
        if (one := row["nmse_inflation"]).ci95[1] < -LEAST_NMSE_INFLATION
    }
    words = [f"{name} by {-one.value:.2f}" for name, one in inflated.items()]
    if words:
        found.append(f"A split by random frames would have lowered the error of {', '.join(words)}.")
    return found


def span(number: Number) -> str:
    """`1.31 [1.20, 1.42]`."""
    return f"{number.value:.2f} [{number.ci95[0]:.2f}, {number.ci95[1]:.2f}]"


def percent(share: float) -> str:
    """`12 %`."""
    return f"{100 * share:.0f} %"
