"""What a benchmark measured, as pictures."""

from collections.abc import Mapping
from pathlib import Path


def plot_memory(resident_mb: Mapping[str, Mapping[int, float]], frame_bytes: int, file: Path) -> None:
    """Memory while reading against the size of the data, beside what the frames would take as pixels.

    Args:
        resident_mb: by way of reading, then by number of frames.
        frame_bytes: of one frame as pixels.
        file: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, found in resident_mb.items():
        is_ours = name.startswith("ours")
        axes.plot(list(found), list(found.values()), "o-" if is_ours else "s--", label=name, alpha=0.85)
    frames = sorted({count for found in resident_mb.values() for count in found})
    axes.plot(frames, [count * frame_bytes / 1e6 for count in frames], ":", color="0.5", label="all frames as pixels")
    axes.set(xscale="log", xlabel="frames of the data set", ylabel="resident memory, MB")
    axes.set_xticks(frames, [f"{count:,}" for count in frames])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(file, dpi=150)
