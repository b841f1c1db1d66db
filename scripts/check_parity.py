"""Compare our models with reference tensors of the published ones; fails above a difference of 1e-4.

python scripts/check_parity.py FILE.safetensors
"""

import argparse
import sys

from core.checkpoint import CheckpointError, read_metadata, read_tensors
from core.run import run_script
from lam import reference as lam_reference
from vla import reference as vla_reference

LIMIT = 1e-4
REFERENCES = (lam_reference, vla_reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="weight.*, input.*, output.* and grad.* of one model, with its sizes as metadata")
    file = parser.parse_args().file
    metadata, tensors = read_metadata(file), read_tensors(file)
    kinds = [kind for kind in REFERENCES if kind.is_reference(tensors)]
    if not kinds:
        raise CheckpointError(f"no model of this project has weights named {sorted(tensors)[:3]}...")
    found = kinds[0].differences(tensors, metadata)
    for name, difference in sorted(found.items()):
        print(f"{name:32} {difference:.3g}")
    worst = max(found.values(), default=float("nan"))
    wanted = {name for name in tensors if name.startswith(("output.", "grad."))}
    for name in sorted(wanted - set(found)):
        print(f"{name:32} not compared: our model gives nothing of that name")
    print(f"largest difference {worst:.3g}, allowed {LIMIT:g}")
    sys.exit(not (worst <= LIMIT and wanted <= set(found)))


if __name__ == "__main__":
    run_script(main)
