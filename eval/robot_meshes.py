"""Lighter meshes of the Panda: a software renderer's time goes into vertices, and a tenth of them looks the same."""

import importlib.metadata
import shutil
import tempfile
from pathlib import Path

from core.packaged import cache_folder

FACES_KEPT = 0.1
SMALLEST_MESH = 40
SHARP_EDGE_RAD = 0.6
PANDAS = {"panda": "panda_v2.urdf", "panda_wristcam": "panda_v3.urdf", "panda_stick": "panda_stick.urdf"}
"""Robots whose meshes can be made lighter, and their descriptions."""
LIGHTER, STOCK = "lighter", "stock"


def use_panda_meshes(meshes: str) -> None:
    """Make ManiSkill load the `lighter` or the `stock` meshes for every kind of Panda from now on."""
    from mani_skill import PACKAGE_ASSET_DIR
    from mani_skill.agents.registration import REGISTERED_AGENTS

    folder = lighter_panda() if meshes == LIGHTER else Path(PACKAGE_ASSET_DIR) / "robots" / "panda"
    for robot, description in PANDAS.items():
        REGISTERED_AGENTS[robot].agent_cls.urdf_path = str(folder / description)


def lighter_panda() -> Path:
    """Folder with the Panda's description and light meshes; made on first use, by whichever process comes first."""
    from mani_skill import PACKAGE_ASSET_DIR

    version = importlib.metadata.version("mani-skill")
    folder = cache_folder() / f"panda-{version}-{FACES_KEPT:g}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)) / folder.name
    shutil.copytree(Path(PACKAGE_ASSET_DIR) / "robots" / "panda", draft)
    for mesh in sorted(draft.rglob("visual/*.glb")):
        _simplify(mesh)
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    shutil.rmtree(draft.parent)
    return folder


def _simplify(file: Path) -> None:
    import trimesh

    lighter = trimesh.Scene()
    scene = trimesh.load(file, process=False, force="scene")
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        lighter.add_geometry(_with_fewer_faces(scene.geometry[name]), node_name=node, transform=transform)
    lighter.export(file, include_normals=True)


def _with_fewer_faces(mesh):  # type: ignore[no-untyped-def]
    import fast_simplification
    import numpy as np
    import trimesh

    light = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    light.merge_vertices(merge_norm=True, merge_tex=True)
    wanted = max(int(len(light.faces) * FACES_KEPT), SMALLEST_MESH)
    if len(light.faces) > wanted:
        vertices, faces = fast_simplification.simplify(
            np.asarray(light.vertices, np.float32), np.asarray(light.faces, np.int32), target_count=wanted
        )
        light = trimesh.Trimesh(vertices, faces, process=False)
    light = trimesh.graph.smooth_shade(light, angle=SHARP_EDGE_RAD)
    material = getattr(mesh.visual, "material", None)
    if material is not None:
        light.visual = trimesh.visual.TextureVisuals(material=material)
    return light
