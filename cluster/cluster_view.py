"""What a front door's readers (the status page, Prometheus) see of the cluster, each answer shared among them."""

from __future__ import annotations

from cluster.router_client import PlacementInfo, RouterLoad
from cluster.service import InferenceService
from cluster.shared_answer import SharedAnswer


class ClusterView:
    """The routers' load and the experts' placement, of a moment ago. Belongs to one event loop.

    Args:
        service: asks the cluster.
    """

    def __init__(self, service: InferenceService) -> None:
        self.load: SharedAnswer[tuple[RouterLoad, ...]] = SharedAnswer(service.load)
        self.placement: SharedAnswer[PlacementInfo] = SharedAnswer(service.describe)
