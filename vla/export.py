"""A policy as a folder to hand on: weights, form, statistics, action space, and a model card made from manifests."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.checkpoint import CheckpointError
from core.config import Config
from core.run import is_done, read_manifest, say, write_json, write_text
from vla.acting import acting_facts
from vla.checkpoint import HUB_NAME, VlaDescription, load, save
from vla.lora import merge
from vla.parts import Part

KEPT_OF_MANIFEST = ("name", "inputs", "versions", "finished", "summary")
"""What of a run's manifest is handed on; paths and commands of the machine are not."""


class ExportConfig(Config):
    """A run of scripts/export_policy.py."""

    policy: str
    """Directory of the fine-tuned policy."""
    out: str
    """Folder that is made."""
    evaluation: str = ""
    """Directory of scripts/evaluate.py, whose episodes of this policy the card reports."""
    merge: bool = False
    """Add adapters to the weights that they belong to, so that the folder stands alone."""
    licence: str = ""
    """Identifier for the card, such as apache-2.0; empty: the card says that it is not stated."""
    push: str = ""
    """OWNER/NAME on the hub to upload the folder to; needs a login there (`hf auth login`)."""
    private: bool = True
    """Whether a repository that is made for it is private."""


def export(config: ExportConfig, results: Sequence[str] = ()) -> Path:
    """Make the folder, in one move, and upload it where that is asked for; `results` are lines for the card.

    Raises:
        CheckpointError: the policy cannot act, is of adapters that lie elsewhere, or the folder exists.
        StatisticsError: it holds no action statistics.
    """
    if config.push and not HUB_NAME.fullmatch(config.push):
        raise CheckpointError(f"push is {config.push!r}, not OWNER/NAME, as models are called on the hub")
    out = Path(config.out)
    if out.exists():
        raise CheckpointError(f"{out} exists; choose another folder or move it away")
    model, description, facts = load(config.policy)
    acting_facts(description, facts, config.policy)
    if description.lora is not None and config.merge:
        merge(model.backbone)
        description = description.model_copy(update={"lora": None, "base": "", "base_fingerprint": ""})
    borrowed = [description.base, *map(str, description.backbone.options.values())]
    if description.lora is not None and (here := [place for place in borrowed if place and Path(place).exists()]):
        raise CheckpointError(
            f"{config.policy} holds adapters of {here[0]}, which others do not have; add --merge true"
        )
    parts = {name: _without_places(getattr(description, name)) for name in ("backbone", "head")}
    description = description.model_copy(update=parts)
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fingerprint = save(temporary, model, description, facts)
    write_json(temporary / "statistics.json", facts["statistics"])
    write_json(temporary / "action_space.json", facts["action_space"])
    manifest = read_manifest(config.policy) if is_done(config.policy) else {}
    kept = {key: manifest[key] for key in KEPT_OF_MANIFEST if key in manifest} | {"fingerprint": fingerprint}
    write_json(temporary / "manifest.json", kept)
    write_text(temporary / "README.md", card(config, description, facts, kept, results))
    temporary.rename(out)
    say(f"export_policy: {out}, fingerprint {fingerprint}")
    if config.push:
        _push(out, config)
    return out


def _without_places(part: Part) -> Part:
    """Folders of this machine, which a folder that stands alone does not need, by their last names only."""
    name, colon, path = part.name.partition(":")
    return Part(name=f"{name}{colon}{_last(path)}", options={key: _last(value) for key, value in part.options.items()})


def _last(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and value and Path(value).is_dir() else value


def card(
    config: ExportConfig,
    description: VlaDescription,
    facts: dict[str, Any],
    manifest: dict[str, Any],
    results: Sequence[str],
) -> str:
    """The model card, README.md."""
    name = config.push or Path(config.out).name
    tags = ["robotics", "vision-language-action"]
    header = ["---", *([f"license: {config.licence}"] if config.licence else []), f"tags: {json.dumps(tags)}", "---"]
    return "\n".join(
        [
            *header,
            f"# {name}",
            "",
            "A vision-language-action policy, fine-tuned with mvp-lam. Act with it, or fine-tune it on:",
            "",
            "```python",
            "from vla.policy import load_policy",
            f'policy = load_policy("{name}")  # a folder, or its name on the hub',
            "```",
            "",
            *_what_it_is(config, description, facts, manifest),
            "",
            "## Actions",
            "",
            *_actions(facts),
            "",
            "## Instructions that it was trained on",
            "",
            *(f"- {instruction}" for instruction in facts.get("instructions", [])),
            "",
            "## Success in closed loop",
            "",
            *(results or ["Not evaluated."]),
            "",
        ]
    )


def _what_it_is(
    config: ExportConfig, description: VlaDescription, facts: dict[str, Any], manifest: dict[str, Any]
) -> list[str]:
    space, summary, inputs = facts["action_space"], manifest.get("summary", {}), manifest.get("inputs", {})
    return [
        "| | |",
        "|---|---|",
        f"| sees | {', '.join(description.shown)} |",
        f"| backbone | {description.backbone.name} |",
        f"| head | {description.head.name if description.head else ''}, {description.horizon} actions a chunk |",
        f"| control | {facts['control_hz']:g} Hz, {space['kind']}, in {space['frame']} |",
        f"| demonstrations | {summary.get('demonstrations', 'unknown')} (store {inputs.get('store', 'unknown')}) |",
        f"| latent actions of | {facts.get('lam_fingerprint', 'none')} |",
        f"| weights | {manifest['fingerprint']} |",
        f"| licence | {config.licence or 'not stated'} |",
    ]


def _actions(facts: dict[str, Any]) -> list[str]:
    space, statistics = facts["action_space"], facts["statistics"]["actions"]
    rows = zip(space["names"], space["units"], statistics["q01"], statistics["q99"], strict=True)
    table = ["| dimension | unit | 1 % to 99 % of the demonstrations |", "|---|---|---|"]
    return table + [f"| {dim} | {unit} | {low:.4g} to {high:.4g} |" for dim, unit, low, high in rows]


def _push(folder: Path, config: ExportConfig) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name = config.push
    # The first base of the hub's error is that of its HTTP library, whose errors of the network are no OSError.
    problems = (OSError, ValueError, HfHubHTTPError.__bases__[0])
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True, private=config.private)
        api.upload_folder(repo_id=name, folder_path=folder)
    except problems as error:
        raise CheckpointError(
            f"{folder} was made but could not be uploaded to {name}: {str(error).splitlines()[0]}; log in with "
            f"`hf auth login` and run `hf upload {name} {folder}`"
        ) from None
    say(f"export_policy: uploaded to {name}")
