import hashlib
from dataclasses import replace

import pytest
import yaml

from cluster.config_source import load_config
from cluster.gpus import Gpu, Gpus
from cluster.machine import Machine
from cluster.plan import make_plan
from cluster.roles import CONTEXT_ROLE, EXPERTS_ROLE, ROUTER_ROLE
from models.checkpoint import open_checkpoint
from protos.errors import BadConfig, NotEnoughMemory
from tests.conftest import ROOT

# Importing Ray Serve warns of its own use of pydantic; so it is imported in here.
pytestmark = pytest.mark.filterwarnings("ignore")

GIB = 1024**3
CARD = Gpu(name="card", memory_bytes=8 * GIB, free_bytes=8 * GIB, capability=(9, 0))
POD = Machine(cores=3, free_bytes=4 * GIB)


def plan_by_role(folder, *assignments, **machines):
    """Plan with pods like POD, other ones by role."""
    by_role = dict.fromkeys((ROUTER_ROLE, EXPERTS_ROLE, CONTEXT_ROLE), POD) | machines
    settings = load_config(assignments=assignments)
    return make_plan(settings, open_checkpoint(folder), "demo", by_role[ROUTER_ROLE], by_role=by_role)


def options(plan):
    from cluster.application import build_application

    ingress = build_application(plan)._bound_deployment
    bound = [ingress, *(each._bound_deployment for each in ingress.init_args[1:])]
    return {each.name: each.ray_actor_options for each in bound}


def test_each_replica_takes_a_node_of_its_role(demo_dir):
    plan = plan_by_role(demo_dir, "long.from_tokens=1000", "context.shards=1", "context.kv_bytes=50000000")
    assert {name: each["resources"] for name, each in options(plan).items()} == {
        "FrontDoor": {"herd_front_door": 1},
        "Router": {"herd_router": 1},
        "LongRouter": {"herd_router": 1},
        "Experts-0": {"herd_experts": 1},
        "Experts-1": {"herd_experts": 1},
        "Context": {"herd_context_shard": 1},
    }


def test_where_nodes_offer_expert_groups_a_replica_takes_a_node_of_its_group(demo_dir):
    plan = replace(plan_by_role(demo_dir), by_expert_group=True)
    found = {name: each["resources"] for name, each in options(plan).items()}
    assert found["Experts-0"] == {"herd_experts": 1, "herd_experts_0": 1}
    assert found["Experts-1"] == {"herd_experts": 1, "herd_experts_1": 1}
    assert found["Router"] == {"herd_router": 1}


def test_on_one_machine_nobody_asks_for_a_role(demo_dir):
    plan = make_plan(load_config(), open_checkpoint(demo_dir), "demo", replace(POD, free_bytes=8 * GIB))
    assert not any("resources" in each for each in options(plan).values())


def test_a_replica_with_a_node_to_itself_has_all_of_its_cores(demo_dir):
    assignments = ("router.replicas=4", "long.from_tokens=1000", "long.replicas=2")
    plan = plan_by_role(demo_dir, *assignments, herd_experts=replace(POD, cores=5))
    assert (plan.router_threads, plan.long.threads, plan.expert_threads) == (3, 3, 5)


def test_gpus_of_all_nodes_that_will_be_there_are_counted(demo_dir):
    gpu_pod = replace(POD, gpus=Gpus((CARD,)))
    plan = plan_by_role(demo_dir, "router.replicas=3", herd_router=gpu_pod, herd_experts=gpu_pod)
    assert (plan.devices.router, plan.devices.experts) == ("cuda", "cuda")
    with pytest.raises(BadConfig, match=r"router\.device"):
        plan_by_role(demo_dir, "router.device=cuda", "experts.device=cpu")


@pytest.mark.parametrize("role", [ROUTER_ROLE, EXPERTS_ROLE])
def test_a_node_too_small_for_its_replica_is_refused_by_role(demo_dir, role):
    with pytest.raises(NotEnoughMemory, match=role):
        plan_by_role(demo_dir, "router.kv_bytes=100000000", **{role: replace(POD, free_bytes=GIB // 4)})


def test_many_replicas_do_not_have_to_fit_one_node(demo_dir):
    assignments = ("router.replicas=20", "experts.replicas_per_group=20", "router.kv_bytes=500000000")
    assert plan_by_role(demo_dir, *assignments).needed_bytes > POD.free_bytes


def test_a_context_shard_with_a_node_to_itself_has_to_be_told_its_size(demo_dir):
    with pytest.raises(BadConfig, match=r"context\.kv_bytes"):
        plan_by_role(demo_dir, "context.shards=2")


def test_replicas_of_roles_listen_where_other_nodes_reach_them(demo_dir):
    from cluster.serve_app import reachable

    changed = reachable(load_config(assignments=["context.host=10.0.0.7"]))
    assert (changed.experts.host, changed.context.host) == (None, "10.0.0.7")


def test_settings_that_are_still_mounted_from_before_are_not_read(tmp_path):
    from cluster.serve_app import BuildArgs, build, wait_for_file

    file = tmp_path / "herd.yaml"
    file.write_text("router: {slots: 3}")
    wait_for_file(file, hashlib.sha256(file.read_bytes()).hexdigest(), timeout_s=0)
    with pytest.raises(BadConfig, match="expected the file with SHA-256 00, found"):
        wait_for_file(file, "00", timeout_s=0)
    with pytest.raises(BadConfig, match="none: No such file"):
        wait_for_file(tmp_path / "other.yaml", "00", timeout_s=0)
    file.write_text("router: {slot: 3}")
    with pytest.raises(BadConfig, match="did you mean slots"):
        build(BuildArgs(config=file))


def test_a_misspelt_argument_of_the_application_is_refused():
    from pydantic import ValidationError

    from cluster.serve_app import BuildArgs

    with pytest.raises(ValidationError, match="by_roles"):
        BuildArgs.model_validate({"by_roles": True})


@pytest.mark.parametrize(("profile", "by_group"), [("demo-cpu", False), ("maverick-2x8-multinode", True)])
def test_ray_serve_takes_what_the_chart_makes_of_it(profile, by_group):
    from ray.serve.schema import ServeDeploySchema

    from cluster.serve_app import BuildArgs, build

    golden = yaml.safe_load((ROOT / "tests" / "chart" / "goldens" / f"{profile}.yaml").read_text())
    config = ServeDeploySchema.model_validate(golden["serveConfigV2"])
    application = config.applications[0]
    assert (config.proxy_location, application.import_path) == ("Disabled", f"{build.__module__}:{build.__name__}")
    found = BuildArgs.model_validate(application.args)
    assert (found.by_role, found.by_expert_group) == (True, by_group)


def test_no_process_is_kept_ready_on_a_node_that_has_its_replica_unless_asked_for(demo_dir):
    assert plan_by_role(demo_dir).warm_spares == 0
    assert plan_by_role(demo_dir, "experts.warm_spares=1").warm_spares == 1
