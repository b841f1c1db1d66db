"""Latent labels: the code indices that a latent action model gives to the transitions of a store."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

COLUMNS = ("episodes", "frames", "views", "codes")


class LabelsError(ValueError):
    """Labels that do not belong to the model or the episodes they are used with."""


@dataclass(frozen=True, kw_only=True)
class LabelsInfo:
    """Where labels come from and what they mean."""

    lam_fingerprint: str
    store_fingerprint: str
    views: tuple[str, ...]
    """Cameras whose frames were encoded, the policy's first."""
    is_vote: bool
    """Whether the cameras of a transition were given one label, by majority."""
    gap_s: float
    """Seconds from the first to the second frame of a transition."""
    num_codes: int
    """Values that one code index can take."""
    num_tokens: int
    """Code indices a transition."""


@dataclass(frozen=True, kw_only=True)
class LatentLabels:
    """Code indices of the transitions that start at `(episode, frame)`, one row for each camera that saw it."""

    info: LabelsInfo
    episodes: Int[np.ndarray, " transitions"]
    frames: Int[np.ndarray, " transitions"]
    views: Int[np.ndarray, " transitions"]
    """Position in `info.views`."""
    codes: Int[np.ndarray, "transitions tokens"]

    def __post_init__(self) -> None:
        """Reject indices that no codebook has.

        Raises:
            LabelsError: a code index is out of range or the number of tokens is not the stated one.
        """
        if self.codes.shape[1] != self.info.num_tokens:
            raise LabelsError(f"{self.codes.shape[1]} codes a transition, the labels state {self.info.num_tokens}")
        if len(self.codes) and not 0 <= self.codes.min() <= self.codes.max() < self.info.num_codes:
            raise LabelsError(
                f"code indices span {self.codes.min()}..{self.codes.max()}, not 0..{self.info.num_codes - 1}"
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        path = Path(path)
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in COLUMNS}
        temporary = path.with_name(f".{path.name}")
        try:
            save_file(tensors, temporary, metadata={"info": json.dumps(asdict(self.info))})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "LatentLabels":
        """Read what `save` wrote.

        Raises:
            LabelsError: there is no such file, or it holds something else.
        """
        if not Path(path).is_file():
            raise LabelsError(f"no latent labels at {path}; make them with scripts/label_latents.py")
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                if "info" not in metadata:
                    raise LabelsError(f"{path} is not a file of latent labels")
                tensors = {name: file.get_tensor(name) for name in COLUMNS}
        except SafetensorError as error:
            raise LabelsError(f"{path} is not a file of latent labels, or is cut off ({error})") from None
        info = json.loads(metadata["info"])
        return cls(info=LabelsInfo(**info | {"views": tuple(info["views"])}), **tensors)

    def require(self, *, store_fingerprint: str, lam_fingerprint: str | None = None) -> None:
        """Refuse use with other episodes or, where one is named, another latent action model.

        Raises:
            LabelsError: a fingerprint does not match.
        """
        if self.info.store_fingerprint != store_fingerprint:
            raise LabelsError(
                f"these labels were made for episodes {self.info.store_fingerprint}, the store is {store_fingerprint}; "
                "label it again with scripts/label_latents.py"
            )
        if lam_fingerprint is not None and self.info.lam_fingerprint != lam_fingerprint:
            raise LabelsError(
                f"these labels come from latent action model {self.info.lam_fingerprint}, expected {lam_fingerprint}; "
                "label the store again with scripts/label_latents.py"
            )
