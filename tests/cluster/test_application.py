"""How the deployments are wired, without starting Ray."""

import pytest

from cluster.config_source import load_config
from cluster.gpus import Gpu, Gpus
from cluster.machine import Machine
from cluster.plan import make_plan
from models.checkpoint import open_checkpoint
from protos.errors import InternalError, NoReplica, Overloaded, ReplicaUnavailable

# Importing Ray Serve warns of its own use of pydantic; so it is imported in here.
pytestmark = pytest.mark.filterwarnings("ignore")


def deployments(folder, *assignments, gpus=0):
    """Return the options of every deployment by its name."""
    from cluster.application import build_application

    card = Gpu(name="card", memory_bytes=8 * 1024**3, free_bytes=8 * 1024**3, capability=(9, 0))
    machine = Machine(cores=2, free_bytes=8 * 1024**3, gpus=Gpus((card,) * gpus))
    plan = make_plan(load_config(assignments=assignments), open_checkpoint(folder), "demo", machine)
    ingress = build_application(plan)._bound_deployment
    bound = [ingress, *(each._bound_deployment for each in ingress.init_args[1:])]
    return {each.name: each for each in bound}


def test_each_expert_group_is_a_deployment(demo_dir):
    found = deployments(demo_dir, "experts.groups=3", "experts.replicas_per_group=2", "router.replicas=4")
    assert list(found) == ["FrontDoor", "Router", "Experts-0", "Experts-1", "Experts-2"]
    assert [each.num_replicas for each in found.values()] == [1, 4, 2, 2, 2]


def test_long_requests_have_a_deployment_of_routers_that_follow_the_same_directory(demo_dir):
    found = deployments(demo_dir, "long.from_tokens=1000", "long.replicas=2")
    assert list(found) == ["FrontDoor", "Router", "LongRouter", "Experts-0", "Experts-1"]
    assert found["LongRouter"].num_replicas == 2
    assert not found["LongRouter"]._deployment_config.deployment_actors
    choice = found["LongRouter"]._deployment_config.request_router_config
    assert choice == found["Router"]._deployment_config.request_router_config


def test_a_dense_model_has_no_expert_deployments(shared_dir):
    assert list(deployments(shared_dir / "goldens" / "llama3")) == ["FrontDoor", "Router"]


def test_experts_in_the_router_have_no_deployments(demo_dir):
    assert list(deployments(demo_dir, "experts.in_router=true", "scaling.router_max_replicas=2")) == [
        "FrontDoor",
        "Router",
    ]


@pytest.mark.parametrize(
    ("gpus", "assignments", "with_gpu"),
    [
        (0, (), []),
        (3, (), ["Router", "Experts-0", "Experts-1"]),
        (1, ("router.device=cuda",), ["Router"]),
        (4, ("long.from_tokens=1000",), ["Router", "LongRouter", "Experts-0", "Experts-1"]),
    ],
)
def test_what_computes_on_gpus_reserves_one_each(demo_dir, gpus, assignments, with_gpu):
    found = deployments(demo_dir, *assignments, gpus=gpus)
    assert [name for name, each in found.items() if each.ray_actor_options.get("num_gpus") == 1] == with_gpu
    assert {each.ray_actor_options["num_cpus"] for each in found.values()} == {0}


def test_a_constructor_that_fails_is_not_tried_again(demo_dir):
    found = deployments(demo_dir)
    assert {each._deployment_config.max_constructor_retry_count for each in found.values()} == {1}


def test_the_directory_runs_on_the_head_so_that_it_keeps_no_pod_from_going(demo_dir):
    (directory,) = deployments(demo_dir)["Router"]._deployment_config.deployment_actors
    assert directory.actor_options["resources"].keys() == {"node:__internal_head__"}


def test_the_directory_lives_with_the_router(demo_dir):
    found = deployments(demo_dir)
    actors = {name: each._deployment_config.deployment_actors or [] for name, each in found.items()}
    assert [name for name, each in actors.items() if each] == ["Router"]
    assert actors["Router"][0].init_kwargs == {
        "lease_s": 6.0,
        "watches_kubernetes": True,
        "near_labels": ("nvidia.com/gpu.clique", "topology.kubernetes.io/zone"),
    }


def test_what_ray_raises_becomes_an_error_of_ours():
    from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    from cluster.serve_router_client import explain

    refused = Overloaded("full", retry_after_ms=7)
    assert explain(RayTaskError("generate", "traceback", refused)) is refused
    assert isinstance(explain(RayTaskError("generate", "traceback", KeyError("x"))), InternalError)
    assert isinstance(explain(ActorDiedError()), ReplicaUnavailable)
    assert isinstance(explain(BackPressureError(num_queued_requests=1, max_queued_requests=1)), Overloaded)
    assert isinstance(explain(DeploymentUnavailableError("Router")), NoReplica)
    assert isinstance(explain(GetTimeoutError()), ReplicaUnavailable)


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ((), ("TEXT", "INFO")),
        (("log.format=json", "log.level=debug"), ("JSON", "INFO")),
        (("log.level=warning",), ("TEXT", "WARNING")),
    ],
)
def test_ray_serve_logs_as_herd_does_and_has_no_line_for_each_call(demo_dir, assignments, expected):
    for each in deployments(demo_dir, *assignments).values():
        found = each._deployment_config.logging_config
        assert (found["encoding"], found["log_level"], found["enable_access_log"]) == (*expected, False)
