"""Mappings: what a source calls things, as data. One YAML file a source, in configs/data/."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from core.config import Config
from core.spaces import END_EFFECTOR_DELTA, ActionSpace

SPACES = {"end_effector_delta": END_EFFECTOR_DELTA}
"""Action spaces that a mapping can name instead of spelling out."""


class ViewMapping(Config):
    """Where the frames of one camera are."""

    source: str
    """The source's name of the camera: a path of keys such as observation/image_0, a feature, a file's stem."""
    size: tuple[int, int] | None = None
    """(height, width) to which frames are resized; none: as they are."""
    rotate_deg: Literal[0, 90, 180, 270] = 0
    """Turn of the picture, clockwise; 180 for cameras that were recorded upside down."""


class Numbers(Config):
    """Numbers of each frame, and what is done to them: `scale * value + offset`."""

    source: str
    """The source's name of them."""
    columns: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Which of them, counted from 0; empty: all."""
    scale: float = 1.0
    """Factor: -1 where the source's sign is the other one."""
    offset: float = 0.0
    """Added after the factor."""

    def taken(self, there: int) -> Sequence[int]:
        """The columns that are taken where the source has `there` numbers a frame.

        Raises:
            ValueError: one of them is not among these.
        """
        if max(self.columns, default=-1) >= there:
            raise ValueError(
                f"{self.source} has {there} numbers a frame, the mapping wants columns {list(self.columns)}"
            )
        return self.columns or range(there)


class Mapping(Config):
    """How to read one source. Empty keys mean: what the format itself says."""

    format: str = "auto"
    """Container of the source, of `core.formats.by_name.READERS`; auto: recognised by its files."""
    views: dict[str, ViewMapping] = Field(default_factory=dict)
    """The cameras by the name they get; a text stands for a view with that source. Empty: all that are found."""
    control_hz: float | None = Field(default=None, gt=0)
    """Frames, and actions, a second; none: what the source says."""
    actions: tuple[Numbers, ...] | None = None
    """The action, piece by piece; none: what the format calls the action; []: leave it out (action-free video)."""
    action_space: ActionSpace | None = None
    """What its numbers mean, or end_effector_delta; none: unspecified."""
    proprioception: tuple[Numbers, ...] | None = None
    """The robot's own state, piece by piece; none: what the format calls the state; []: leave it out."""
    instruction: str = ""
    """The source's name of the instruction."""
    default_instruction: str = ""
    """Said where the source has no instruction."""
    columns: tuple[str, ...] = ()
    """Further things of each frame to keep, by the source's name: rewards, flags, texts."""
    scene: str = ""
    """The source's name of what tells scenes apart; splits then never tear a scene."""
    task: str = ""
    """Machine name of the task; empty: made from the instruction."""
    robot_type: str = ""
    """Name of the robot."""

    @field_validator("views", mode="before")
    @classmethod
    def _text_is_a_view(cls, views: Any) -> Any:
        if not isinstance(views, dict):
            return views
        return {name: {"source": view} if isinstance(view, str) else view for name, view in views.items()}

    @field_validator("actions", "proprioception", mode="before")
    @classmethod
    def _text_is_a_piece(cls, pieces: Any) -> Any:
        if isinstance(pieces, str):
            pieces = [pieces]
        if not isinstance(pieces, list | tuple):
            return pieces
        return [{"source": piece} if isinstance(piece, str) else piece for piece in pieces]

    @field_validator("action_space", mode="before")
    @classmethod
    def _name_is_a_space(cls, space: Any) -> Any:
        if not isinstance(space, str):
            return space
        if space not in SPACES:
            raise ValueError(f"no action space is called {space}; there are {list(SPACES)}, or spell one out")
        return SPACES[space]

    @model_validator(mode="after")
    def _space_needs_actions(self) -> "Mapping":
        if self.actions == () and self.action_space is not None:
            raise ValueError("action_space is given, but actions is []; give both or neither")
        return self
