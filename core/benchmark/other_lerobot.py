"""LeRobot's own data set class, timed. Run by the benchmark with a Python that has lerobot; imports nothing of ours.

Reads lines {"store": ..., "count": ..., "seed": ..., "gap_s": ...}; answers {"cpu_s": ..., "resident_mb": ...} to each.
"""

import json
import sys
import time
from typing import Any


def resident_mb() -> float:
    """Memory of this process that is in use."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def main() -> None:
    """Answer until the questions end."""
    import numpy as np
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    opened: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["store"] not in opened:
            views = ("observation.images.front", "observation.images.side")
            steps = {view: [0, asked["gap_s"]] for view in views}
            opened[asked["store"]] = LeRobotDataset(
                "local/store", root=asked["store"], delta_timestamps=steps, return_uint8=True
            )
        dataset = opened[asked["store"]]
        indices = np.random.default_rng(asked["seed"]).integers(len(dataset), size=asked["count"])
        dataset[int(indices[0])]
        start = time.process_time()
        for index in indices:
            dataset[int(index)]
        spent = time.process_time() - start
        sys.stdout.write(json.dumps({"cpu_s": spent, "resident_mb": resident_mb()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
