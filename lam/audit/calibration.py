"""The calibration table: every estimator against every ground truth, so that a reader sees which number to believe."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.config import Config
from core.json_lines import append_json_line, read_json_lines
from core.run import say, write_text
from lam.audit.estimate import interval
from lam.audit.estimators.by_name import ESTIMATORS, PRIMARY, estimate
from lam.audit.ground_truth import CASES

CHEAP = ("barber_agakov_linear", "ross", "ksg", "gao", "plug_in", "miller_madow", "nsb")
"""Estimators that fit no network and are quick enough for all repeats."""


class CalibrationConfig(Config):
    """A run of scripts/calibrate_mi.py."""

    results: str = "docs/results/calibration/results.jsonl"
    """One line a repeat; those that are there are not made again."""
    page: str = "docs/calibration.md"
    """The table for people."""
    picture: str = "docs/calibration.png"
    """Estimate against truth."""
    sizes: tuple[int, ...] = (1200, 4000)
    """Samples."""
    repeats: int = 20
    """Draws of each case for estimators that are quick."""
    slow_repeats: int = 3
    """Draws for those that fit networks, the primary among them."""
    estimators: tuple[str, ...] = ()
    """Empty: all."""


class Job(NamedTuple):
    """One estimate to make."""

    case: str
    estimator: str
    n: int
    seed: int


def calibrate(config: CalibrationConfig) -> None:
    """Make what is missing of the results, then the page and the picture."""
    path = Path(config.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {Job(*(line[key] for key in Job._fields)) for line in read_results(path)}
    wanted = [job for job in jobs(config) if job not in done]
    started = time.monotonic()
    for number, job in enumerate(wanted, start=1):
        append_json_line(path, measured(job))
        spent = time.monotonic() - started
        if number % 50 == 0 or number == len(wanted):
            say(f"calibration {number}/{len(wanted)}, ETA {spent / number * (len(wanted) - number):.0f} s")
    results = read_results(path)
    write_text(config.page, page(results, Path(config.picture).name))
    draw(results, config.picture)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Lines of a results file; none where there is no file yet."""
    return read_json_lines(path) if path.is_file() else []


def jobs(config: CalibrationConfig) -> list[Job]:
    """Every estimate, seed by seed, so that a run that is stopped has some of everything."""
    most = max(config.repeats, config.slow_repeats)
    return [
        Job(case, name, n, seed)
        for seed in range(most)
        for n in config.sizes
        for case in CASES
        for name in config.estimators or ESTIMATORS
        if seed < (config.repeats if name in CHEAP else config.slow_repeats) and applies(name, case)
    ]


def applies(name: str, case: str) -> bool:
    """Whether an estimator takes what a case draws."""
    entry, kind = ESTIMATORS[name], CASES[case].kind
    if entry.needs_discrete_actions:
        return kind == "discrete"
    return {"codes": kind != "latents", "latents": kind == "latents", "either": True}[entry.takes]


def measured(job: Job) -> dict[str, Any]:
    """One estimate with its interval and the processor seconds that it took."""
    # Draws differ between cases, and are the same for every estimator.
    sample = CASES[job.case].draw(job.n, np.random.default_rng((list(CASES).index(job.case), job.n, job.seed)))
    entry = ESTIMATORS[job.estimator]
    sample = sample.take(np.arange(min(job.n, entry.max_samples)))
    started = time.process_time()
    found = estimate(job.estimator, sample, seed=job.seed)
    seconds = time.process_time() - started
    ci95 = interval(found, sample, job.seed)
    return job._asdict() | {
        "bits": round(found.bits, 4),
        "ci95": None if ci95 is None else [round(end, 4) for end in ci95],
        "seconds": round(seconds, 2),
    }


class Row(NamedTuple):
    """An estimator on a case at a size."""

    mean: float
    spread: float
    """Standard deviation over draws; NaN for one."""
    covered: float
    """Share of intervals that hold the truth; NaN where there are none."""
    seconds: float
    draws: int


def summarised(results: list[dict[str, Any]]) -> dict[tuple[str, str, int], Row]:
    """Rows by estimator, case and size."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for line in results:
        groups[line["estimator"], line["case"], line["n"]].append(line)
    rows = {}
    for key, lines in groups.items():
        bits = np.array([line["bits"] for line in lines])
        truth = CASES[key[1]].bits
        inside = [line["ci95"][0] <= truth <= line["ci95"][1] for line in lines if line["ci95"] is not None]
        rows[key] = Row(
            float(bits.mean()),
            float(bits.std(ddof=1)) if len(bits) > 1 else float("nan"),
            float(np.mean(inside)) if inside else float("nan"),
            float(np.mean([line["seconds"] for line in lines])),
            len(lines),
        )
    return rows


INTRODUCTION = """# Which number to believe

Every estimator of `lam/audit/estimators/` against laws whose mutual information is known (`lam/audit/ground_truth.py`).
Made by `python scripts/calibrate_mi.py`, which goes on where it stopped; one line a draw in
`docs/results/calibration/`.

**Believe `contrastive`**, the primary of `scripts/estimate_mi.py`. It is a bound from below whatever the law of codes
and actions: it asks, on episodes that nothing was fitted on, how much better its own latent explains an action than
the latents of other samples do. It cannot gain by a poor model of the actions alone, which is how others exceed the
truth, and a rare code cannot cost it more than 6.6 bits a sample. What it misses is meaning that it has no density for:
codes of curved regions in many dimensions, interplay of more than three tokens. Where episodes are few and long, luck
can look like meaning in all of them at once: then it reports nothing, or less than nothing (down to -0.8 bits in one
of eight draws of 24 monotonous episodes), never more.

- `barber_agakov_linear` is a good second opinion in a second of time, blind to interplay of tokens and to spread.
- `cross_entropy`, `info_nce`, `mine` are honest and want ten times the samples.
- `ross` (a single token) looks for neighbours and finds them in the same episode: up to 3.7 bits where there are none.
  `ksg` and `gao` (few continuous dimensions) look the same way, and no law with few long episodes tried them.
  Exploratory. `nsb` is good where actions are discrete.
- Those *as published* report bits where there are none: look at the rows of truth 0.

An interval covers the sampling of episodes, not the bias: an estimator far below the truth has its interval there too.
`mean` and `SD` are over draws, in bits; `covered` is the share of 95 % intervals that hold the truth; `s` are processor
seconds.

![Estimate against truth]({picture})
"""


def page(results: list[dict[str, Any]], picture: str) -> str:
    """The page: an overview by estimator, then a table, for each size."""
    rows = summarised(results)
    sizes = sorted({n for _, _, n in rows})
    parts = [INTRODUCTION.replace("{picture}", picture), *(_overview(rows, n) for n in sizes)]
    parts += [_table(rows, n) for n in sizes]
    return "\n".join(parts)


def _overview(rows: dict[tuple[str, str, int], Row], n: int) -> str:
    lines = [
        f"## At a glance, n = {n}",
        "",
        "| estimator | most above truth | at truth 0, furthest | least share of truth | median share | s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in ESTIMATORS:
        own = {case: row for (estimator, case, size), row in rows.items() if (estimator, size) == (name, n)}
        if not own:
            continue
        above = max(row.mean - CASES[case].bits for case, row in own.items())
        nothing = [abs(row.mean) for case, row in own.items() if CASES[case].bits == 0]
        shares = [row.mean / CASES[case].bits for case, row in own.items() if CASES[case].bits > 0]
        seconds = np.mean([row.seconds for row in own.values()])
        label = f"**{name}**" if name == PRIMARY else name + " (exploratory)" * ESTIMATORS[name].exploratory
        share = f"{min(shares):.0%} | {np.median(shares):.0%}"
        lines.append(f"| {label} | {above:+.2f} | {max(nothing):.2f} | {share} | {seconds:.1f} |")
    return "\n".join([*lines, ""])


def _table(rows: dict[tuple[str, str, int], Row], n: int) -> str:
    lines = [f"## n = {n}", "", "| case | truth | estimator | mean | SD | covered | s | draws |", "| --- " * 8 + "|"]
    for case, truth in CASES.items():
        for name in ESTIMATORS:
            row = rows.get((name, case, n))
            if row is None:
                continue
            label = f"**{name}**" if name == PRIMARY else name
            numbers = f"{row.mean:.2f} | {_text(row.spread, '.2f')} | {_text(row.covered, '.0%')} | {row.seconds:.1f}"
            lines.append(f"| {case} | {truth.bits:.2f} | {label} | {numbers} | {row.draws} |")
    return "\n".join([*lines, ""])


def _text(value: float, how: str) -> str:
    return "" if np.isnan(value) else format(value, how)


def draw(results: list[dict[str, Any]], path: str) -> None:
    """A panel an estimator: mean estimate against truth, one dot a case, at the smallest and the largest size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = summarised(results)
    names = [name for name in ESTIMATORS if any(name == key[0] for key in rows)]
    sizes = sorted({n for _, _, n in rows})
    columns = min(5, len(names))
    figure, panels = pyplot.subplots(
        -(-len(names) // columns), columns, figsize=(3 * columns, 3 * -(-len(names) // columns)), squeeze=False
    )
    for panel in panels.flat:
        panel.axis("off")
    for panel, name in zip(panels.flat, names, strict=False):
        panel.axis("on")
        panel.axline((0, 0), slope=1, color="0.7", linewidth=1)
        for n, colour in zip(sizes, ("tab:orange", "tab:blue", "tab:green", "tab:red"), strict=False):
            own = [(CASES[case].bits, row.mean) for (who, case, size), row in rows.items() if (who, size) == (name, n)]
            if own:
                panel.scatter(*zip(*own, strict=True), s=14, color=colour, alpha=0.7, label=f"n = {n}")
        panel.set(title=name, xlim=(-0.3, 7), ylim=(-1, 7.5))
        panel.title.set_fontsize(9)
        if ESTIMATORS[name].exploratory:
            panel.set_facecolor("#f6e9e9")
    panels[0, 0].legend(fontsize=8)
    figure.supxlabel("truth, bits")
    figure.supylabel("estimate, bits")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    pyplot.close(figure)
