"""What openpi's own client makes of our server; runs in an environment with openpi-client 0.1.2 and typing_extensions.

python tests/openpi_compatibility.py HOST PORT [TOKEN]    prints what it was told and answered, as JSON
"""

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def main() -> None:
    """Ask with the keys of openpi's examples: those of its ALOHA policies, then those of its LIBERO ones."""
    client = WebsocketClientPolicy(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
    image, state = np.full((224, 224, 3), 7, np.uint8), np.zeros(3)
    aloha = {"images": {"front": image}, "state": state, "prompt": "push the cube"}
    libero = {"observation/front": image, "observation/state": state, "prompt": "push the cube"}
    answers = [client.infer(observation) for observation in (aloha, libero, libero | {"prompt": "pull it"})]
    broker = ActionChunkBroker(client, action_horizon=2)
    steps = [broker.infer(libero)["actions"] for _ in range(3)]
    try:
        client.infer({"prompt": "push the cube"})
        error = ""
    except RuntimeError as problem:
        error = str(problem)
    after = client.infer(aloha)
    out = {
        "metadata": client.get_server_metadata(),
        "actions": [answer["actions"].tolist() for answer in answers],
        "timing": sorted(answers[0]["server_timing"]),
        "steps": [step.tolist() for step in steps],
        "error": error,
        "after": after["actions"].tolist(),
        "numpy": np.__version__,
    }
    print(json.dumps(out))  # noqa: T201


if __name__ == "__main__":
    main()
