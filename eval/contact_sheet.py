"""A picture of a store for people: for each instruction an episode with the most views, all of them at a few times."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from core.store import EpisodeRecord, Store

TIMES = 4
CAPTION_HEIGHT = 16


def write_contact_sheet(store_path: Path) -> Path:
    """`contact_sheet.png` in the store: rows are instructions, columns are views, several times each."""
    store = Store.open(store_path)
    shown = {r.instruction: r for r in sorted(store.episodes, key=lambda r: (len(r.views), -r.index))}
    rows = [_row(store, shown[instruction]) for instruction in sorted(shown)]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    file = store_path / "contact_sheet.png"
    sheet.save(file)
    return file


def _row(store: Store, record: EpisodeRecord) -> Image.Image:
    times = np.linspace(0, record.length - 1, TIMES).round().astype(int).tolist()
    images = [image for view in record.views for image in store.frames(record.index, view, times)]
    row = Image.new("RGB", (sum(i.shape[1] for i in images), CAPTION_HEIGHT + max(i.shape[0] for i in images)), "white")
    left = 0
    for image in images:
        row.paste(Image.fromarray(image), (left, CAPTION_HEIGHT))
        left += image.shape[1]
    caption = f"{record.instruction}   [{record.episode_id}; {', '.join(record.views)}]"
    ImageDraw.Draw(row).text((4, 2), caption, fill="black")
    return row
