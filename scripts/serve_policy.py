"""Serve a policy to simulators and robots, which need neither its weights nor torch; Ctrl-C stops it.

python scripts/serve_policy.py --policy runs/mine/policy [--port 8000] [--host 0.0.0.0 --token_file FILE]

Clients are `eval.remote.RemotePolicy("ws://127.0.0.1:8000")` and openpi-client; http://127.0.0.1:8000/healthz says OK.
"""

from core.config import parse_command_line
from core.run import run_script
from eval.serving import serve
from eval.serving_settings import ServePolicyConfig, require_startable


def main() -> None:
    config = parse_command_line(ServePolicyConfig, __doc__, required_config=False)
    require_startable(config)
    from vla.policy import load_policy  # takes a while, which a port that is taken need not wait for

    serve(load_policy(config.policy), config)


if __name__ == "__main__":
    run_script(main)
