"""RLDS as it is usually read, timed: TFRecords one after another, a shuffle buffer of encoded transitions, decoding.

Run by the benchmark with a Python that has TensorFlow; imports nothing of ours. Reads lines
{"records": ..., "frames": ..., "count": ..., "gap": ..., "buffer": ...} and answers {"cpu_s": ..., "resident_mb": ...}
to each; where `records` is not there it is written first, from the arrays (episodes, frames, height, width, 3) in
`frames`.npz.
"""

import json
import os
import sys
import time
from typing import Any

VIEWS = ("front", "side")


def resident_mb() -> float:
    """Memory of this process that is in use."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def write(tf: Any, asked: dict[str, Any]) -> None:
    """Episodes as RLDS keeps them: one record each, pictures as JPEG."""
    import numpy as np

    arrays = np.load(asked["frames"])
    with tf.io.TFRecordWriter(asked["records"]) as writer:
        for episode in range(len(arrays[VIEWS[0]])):
            feature = {
                f"steps/observation/{view}": tf.train.Feature(
                    bytes_list=tf.train.BytesList(
                        value=[tf.io.encode_jpeg(frame, quality=95).numpy() for frame in arrays[view][episode]]
                    )
                )
                for view in VIEWS
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def transitions(tf: Any, asked: dict[str, Any]) -> Any:
    """Two-view transitions in a shuffled order, decoded after the shuffling."""
    spec = {f"steps/observation/{view}": tf.io.VarLenFeature(tf.string) for view in VIEWS}

    def pairs(record: Any) -> Any:
        steps = tf.io.parse_single_example(record, spec)
        frames = [tf.sparse.to_dense(steps[name]) for name in spec]
        ends = [(view[: -asked["gap"]], view[asked["gap"] :]) for view in frames]
        return tf.data.Dataset.from_tensor_slices(tf.stack([end for pair in ends for end in pair], axis=1))

    def pixels(encoded: Any) -> Any:
        return tf.stack([tf.io.decode_jpeg(encoded[number], channels=3) for number in range(4)])

    records = tf.data.TFRecordDataset(asked["records"]).repeat().flat_map(pairs)
    return records.shuffle(asked["buffer"], seed=0).map(pixels).batch(32)


def main() -> None:
    """Answer until the questions end."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    running: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if not os.path.exists(asked["records"]):
            write(tf, asked)
        if asked["records"] not in running:
            running[asked["records"]] = iter(transitions(tf, asked))
            next(running[asked["records"]])
        start = time.process_time()
        for _ in range(max(1, asked["count"] // 32)):
            next(running[asked["records"]])
        spent = time.process_time() - start
        sys.stdout.write(json.dumps({"cpu_s": spent, "resident_mb": resident_mb()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
