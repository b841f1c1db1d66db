"""Where a policy is served and what clients are told of it, and what a server checks before it starts."""

import ipaddress
import socket
from pathlib import Path
from typing import Any

from pydantic import Field

from core.config import Config
from core.policy import Observation, Policy
from eval.wire import OPTIONAL_FACTS, ServerFacts, WireError


class ServingError(RuntimeError):
    """A server that cannot start."""


class ServingConfig(Config):
    """Where a policy is served, to how many, and what they may do."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine's, which others can then reach."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0: any that is free."""
    token_file: str = ""
    """File with a secret that clients must give; empty: none is asked for."""
    max_clients: int = Field(default=128, ge=1)
    """Connections at a time."""
    max_message_mib: float = Field(default=16.0, gt=0)
    """Size of a request."""
    idle_s: float = Field(default=600.0, gt=0)
    """Seconds without a request after which a client is sent away."""
    message_s: float = Field(default=30.0, gt=0)
    """Seconds that one request may take to arrive, and its answer to be taken."""
    max_batch: int = Field(default=16, ge=1)
    """Clients answered in one forward pass; 1: each by itself, to the last bit as without a server."""
    gather_ms: float = Field(default=3.0, ge=0)
    """Milliseconds to wait for other clients that are connected."""


class ServePolicyConfig(ServingConfig):
    """A run of scripts/serve_policy.py."""

    policy: str
    """Directory of a fine-tuned policy, an exported folder, or its name on the hub."""


def read_token(file: str) -> str:
    """The secret in a file, empty where none is named.

    Raises:
        ServingError: the file is missing or empty, or holds more than printable ASCII.
    """
    if not file:
        return ""
    if not Path(file).is_file():
        raise ServingError(f"there is no token file {file}; make one with `openssl rand -hex 32 > {file}`")
    token = Path(file).read_text(errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ServingError(f"{file} holds no token; make one with `openssl rand -hex 32 > {file}`")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_startable(config: ServingConfig) -> None:
    """Find out before a policy is loaded, which may take minutes, whether it can be served.

    Raises:
        ServingError: the token cannot be read, the port is taken, or the host is none of this machine.
    """
    read_token(config.token_file)
    try:
        family, kind, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise cannot_listen(config, error) from None


def cannot_listen(config: ServingConfig, error: OSError) -> ServingError:
    """What to say of an address that cannot be had."""
    reason = (error.strerror or str(error)).rpartition(": ")[2]
    return ServingError(
        f"cannot listen at port {config.port} of {config.host} ({reason}); stop what listens there, or give another "
        "--port (0: any that is free) or --host"
    )


def facts_of(policy: Policy, config: ServingConfig) -> ServerFacts:
    """What clients are told first."""
    known: dict[str, Any] = {name: getattr(policy, name, None) for name in OPTIONAL_FACTS}
    return ServerFacts(
        fingerprint=policy.fingerprint,
        cameras=policy.cameras,
        action_space=policy.action_space,
        max_message_bytes=int(config.max_message_mib * 2**20),
        **known,
    )


def require_fit(observation: Observation, facts: ServerFacts) -> None:
    """Refuse what would fail in the policy, and with it in a batch of others.

    Raises:
        WireError: a camera or the proprioception is missing, or that has another number of dimensions.
    """
    if missing := [camera for camera in facts.cameras if camera not in observation.images]:
        raise WireError(f"the policy sees the cameras {list(facts.cameras)}; the observation lacks {missing}")
    if not facts.proprioception_dims:
        return
    given = 0 if observation.proprioception is None else len(observation.proprioception)
    if given != facts.proprioception_dims:
        raise WireError(f"the policy reads {facts.proprioception_dims} numbers of proprioception, not {given}")


def introduction(facts: ServerFacts, address: str) -> str:
    """Where the policy is and what it sees, in one line."""
    size = f" ({facts.image_size} px)" if facts.image_size else ""
    senses = f" and {facts.proprioception_dims} numbers of proprioception" if facts.proprioception_dims else ""
    chunk = f"{facts.horizon} actions" if facts.horizon else "actions"
    rate = f" at {facts.control_hz:g} Hz" if facts.control_hz else ""
    return (
        f"serve_policy: {address} answers {chunk} of {', '.join(facts.action_space.names)} "
        f"({facts.action_space.kind}){rate}; it sees {', '.join(facts.cameras) or 'no camera'}{size}{senses}; "
        f"policy {facts.fingerprint}; Ctrl-C stops it"
    )
