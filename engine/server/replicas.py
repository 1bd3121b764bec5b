"""Several servers behind one address, by Ray Serve: all requests of a session go to the same one.

A session is a `Client`, which names itself by a random header. So it finds its volumes, jobs and results again, and
the servers need to know nothing of each other. Where one is lost, its sessions move to others, and their clients
give the volumes again.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.cli import log_what_names_nobody
from engine.errors import UserError
from engine.server.token import TOKEN_VARIABLE, chosen_token

if TYPE_CHECKING:
    from ray.serve import Application

    from engine.server.guard import Guard

AFFINITY = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
MIB = 1 << 20


@dataclass(frozen=True)
class Replicas:
    """What a deployment file, or `python -m engine.department`, says of the servers.

    Attributes:
        replicas: how many there are.
        gpus, cpus: of each.
        device, precision, memory_mb, body_mb, volumes, waiting, models: of each, as of `python -m engine.serve`.
    """

    replicas: int = 2
    gpus: int = 0
    cpus: int = 1
    device: str = "auto"
    precision: str = "auto"
    memory_mb: int = 4096
    body_mb: int = 1024
    volumes: int = 16
    waiting: int = 32
    models: int = 3


def build(arguments: dict[str, Any]) -> "Application":
    """Return what Ray Serve runs; a deployment file names this function, and `arguments` are those of `Replicas`.

    Raises:
        UserError: an unknown argument, or no token in the environment.
    """
    if not os.environ.get(TOKEN_VARIABLE):
        raise UserError(f"set {TOKEN_VARIABLE} before `ray start` on each machine; clients need the same token")
    try:
        return deployment(Replicas(**arguments), chosen_token())
    except TypeError as error:
        raise UserError(f"the deployment's arguments are not valid: {error}") from error


def deployment(wanted: Replicas, token: str) -> "Application":
    """Return what Ray Serve runs, with a token that all replicas want."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    def server() -> "Guard":  # called in each replica
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        log_what_names_nobody()
        from engine.server.app import Settings, create_app

        same = {name: getattr(wanted, name) for name in ("device", "precision", "volumes", "waiting", "models")}
        return create_app(
            Settings(token, memory_bytes=wanted.memory_mb * MIB, body_bytes=wanted.body_mb * MIB, **same)
        )

    return serve.deployment(
        serve.ingress(server)(),
        name="segmentation",
        num_replicas=wanted.replicas,
        max_ongoing_requests=4 * wanted.waiting,  # who waits for a job keeps a request open
        ray_actor_options={"num_gpus": wanted.gpus, "num_cpus": wanted.cpus},
        request_router_config=RequestRouterConfig(
            request_router_class=AFFINITY, request_router_kwargs={"num_fallback_replicas": 0}
        ),
        logging_config={"enable_access_log": False},
    ).bind()
