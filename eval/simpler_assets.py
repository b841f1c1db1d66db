"""SIMPLER's files: where they are looked for, how to get them, and whether they are the official ones."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from eval.maniskill_registry import DOWNLOAD

BRIDGE = Path("tasks/bridge_v2_real2sim_dataset")
MODELS = (
    "baked_green_cube_3cm",
    "baked_yellow_cube_3cm",
    "bridge_carrot_generated_modified",
    "bridge_plate_objaverse_larger",
    "bridge_spoon_generated_modified",
    "dummy_sink_target_plane",
    "eggplant",
    "sink",
    "table_cloth_generated_shorter",
)
NEEDED = {
    "widowx250s": (Path("robots/widowx/wx250s.urdf"), Path("robots/widowx/wx250s.srdf")),
    "bridge_v2_real2sim": (
        *(BRIDGE / "custom" / f"info_bridge_custom_{version}.json" for version in ("v0", "baked_tex_v0")),
        *(BRIDGE / "custom/models" / model / "collision.obj" for model in MODELS),
        *(BRIDGE / "real_inpainting" / name for name in ("bridge_real_eval_1.png", "bridge_sink.png")),
        *(BRIDGE / "stages" / f"bridge_table_1_{version}.glb" for version in ("v1", "v2")),
    ),
}
"""Files below `asset_folder()` by mani-skill's name of the download that holds them."""

STAND_INS = {
    BRIDGE / "stages/bridge_table_1_v1.glb": "de2de4707ceef0d42fc5085575e955f84573148e9c66448638288abb7a826d11",
    BRIDGE / "stages/bridge_table_1_v2.glb": "677371896140f315bd542277099c0db1ce8b0779b7e44c0aba7829b043288742",
    BRIDGE / "custom/models/eggplant/textured.glb": "17a1a988000967fe83eb7fb821bdab8d22ede05a4f18d226f357d1ed36030fbf",
}
"""sha256 of replacements that are passed around where the official download cannot be had: two slabs as tables, which
the photograph hides, and a plain eggplant."""

OFFICIAL = "official"
NOT_OFFICIAL = "not official assets"


class AssetsError(FileNotFoundError):
    """SIMPLER's files are not there; `command` gets them."""

    def __init__(self, what: str, command: str) -> None:
        super().__init__(f"{what}; get them with: {command} (or set MS_ASSET_DIR to the folder whose data/ holds them)")
        self.what, self.command = what, command


def asset_folder() -> Path:
    """Where mani-skill looks for its files: `data` in the folder that MS_ASSET_DIR names, by default ~/.maniskill."""
    return Path(os.environ.get("MS_ASSET_DIR", Path.home() / ".maniskill")) / "data"


def download(names: Iterable[str]) -> str:
    """The commands that get what mani-skill calls so."""
    return " && ".join(f"{DOWNLOAD} {name}" for name in names)


def require_assets() -> str:
    """`official`, or `not official assets` and which stand-ins are among them.

    Files other than known stand-ins are taken for what mani-skill downloads; its licence and checksums are its own.

    Raises:
        AssetsError: files are missing; the message holds the commands that get them.
    """
    folder = asset_folder()
    missing = {name: [file for file in files if not (folder / file).is_file()] for name, files in NEEDED.items()}
    wanted = [name for name, files in missing.items() if files]
    if wanted:
        count, first = sum(map(len, missing.values())), missing[wanted[0]][0]
        chosen = "as MS_ASSET_DIR says" if "MS_ASSET_DIR" in os.environ else "MS_ASSET_DIR is not set"
        raise AssetsError(f"{folder} ({chosen}) lacks {count} of SIMPLER's files, such as {first}", download(wanted))
    found = [file.name if file.parent.name == "stages" else file.parent.name for file in _stand_ins(folder)]
    return f"{NOT_OFFICIAL} (stand-ins: {', '.join(found)})" if found else OFFICIAL


def _stand_ins(folder: Path) -> list[Path]:
    return [file for file, digest in STAND_INS.items() if _sha256(folder / file) == digest]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
