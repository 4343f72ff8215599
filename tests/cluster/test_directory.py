import asyncio
from dataclasses import replace

from cluster.directory import Departures, Directory, DirectorySnapshot, ExpertReplica, Follower, merge_placements
from cluster.names import LONG_ROUTER, ROUTER
from router.location import Location
from router.placement import ExpertHolder, Placement

LEASE_S = 6.0


def replica(name: str, *experts: int, home: tuple[int, ...] = (0,)) -> ExpertReplica:
    holder = ExpertHolder(replica_id=name, address=f"{name}:1", expert_ids=experts)
    return ExpertReplica(holder=holder, group="Experts-0", home_ids=home, weight_bytes=1, pid=1)


def router(name: str, location: Location, deployment: str = ROUTER) -> Follower:
    return Follower(router_id=name, deployment=deployment, location=location, node_id=f"node-{name}", is_serving=True)


def directory(now: float = 0.0, first_version: int = 100) -> Directory:
    return Directory(lease_s=LEASE_S, first_version=first_version, now=now)


def ids(snapshot: DirectorySnapshot) -> list[str]:
    return [each.holder.replica_id for each in snapshot.replicas]


def test_a_registered_replica_is_in_the_next_version():
    it = directory()
    it.register(replica("a", 0, 1), now=0)
    snapshot = it.snapshot()
    assert (snapshot.version, ids(snapshot)) == (101, ["a"])
    assert snapshot.placement().replicas_by_expert == {0: ("a",), 1: ("a",)}


def test_an_expert_is_copied_from_a_holder_other_than_who_asks():
    it = directory()
    for name, experts in (("a", (0, 1)), ("b", (0, 1)), ("c", (2,))):
        it.register(replica(name, *experts), now=0)
    snapshot = it.snapshot()
    assert [snapshot.holder_of(expert, "c") for expert in (0, 1, 2, 3)] == ["a:1", "b:1", None, None]
    assert snapshot.holder_of(0, "a") == "b:1"


def test_registering_again_unchanged_is_no_new_version():
    it = directory()
    it.register(replica("a", 0), now=0)
    it.register(replica("a", 0), now=1)
    assert it.snapshot().version == 101


def test_a_lease_ends_unless_it_is_renewed():
    it = directory()
    it.register(replica("a", 0), now=0)
    it.register(replica("b", 0), now=0)
    assert it.renew("a", now=5)
    it.advance(now=6)
    assert ids(it.snapshot()) == ["a"]


def test_renewing_after_the_end_of_the_lease_asks_to_register():
    it = directory()
    it.register(replica("a", 0), now=0)
    assert not it.renew("a", now=LEASE_S)
    assert not it.renew("stranger", now=0)


def test_time_in_which_nobody_could_be_heard_ends_no_lease():
    it = directory()
    it.register(replica("a", 0), now=0)
    it.thaw(10)
    it.advance(now=15.9)
    assert ids(it.snapshot()) == ["a"]
    it.advance(now=16)
    assert ids(it.snapshot()) == []


def test_what_becomes_of_replicas_is_told():
    it = directory()
    it.register(replica("a", 0), now=0)
    it.register(replica("a", 0, 5), now=1)
    it.register(replica("a", 0), now=2)
    it.advance(now=10)
    assert [(event.subject, event.text) for event in it.events.newest()] == [
        ("a", "serves Experts-0"),
        ("a", "serves a copy of expert 5"),
        ("a", "gives up its copy of expert 5"),
        ("a", "lost: no heartbeat came any more"),
    ]


def test_of_the_experts_that_a_start_brings_one_after_the_other_no_copies_are_told():
    it = directory()
    for experts in ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 7)):
        it.register(replica("a", *experts, home=(0, 1, 2)), now=0)
    assert [event.text for event in it.events.newest()] == ["serves Experts-0", "serves a copy of expert 7"]
    assert it.snapshot().placement().missing(range(8)) == [3, 4, 5, 6]


def test_deregistering_twice_is_one_change():
    it = directory()
    it.register(replica("a", 0), now=0)
    it.deregister("a")
    it.deregister("a")
    assert (it.snapshot().version, ids(it.snapshot())) == (102, [])


def test_it_settles_after_one_lease_and_says_so_once():
    it = directory(now=10)
    it.advance(now=15.9)
    assert not it.snapshot().is_settled
    it.advance(now=16)
    it.advance(now=17)
    assert (it.snapshot().is_settled, it.snapshot().version) == (True, 101)


def test_whoever_waits_is_woken_by_a_change():
    async def scenario() -> DirectorySnapshot:
        it = directory()
        waiting = asyncio.create_task(it.wait_for_change(100, timeout_s=30))
        await asyncio.sleep(0)
        it.register(replica("a", 0), now=0)
        return await waiting

    assert ids(asyncio.run(scenario())) == ["a"]


def test_waiting_for_an_old_version_returns_at_once_and_for_this_one_in_time():
    async def scenario() -> tuple[int, int]:
        it = directory()
        old = await it.wait_for_change(7, timeout_s=30)
        same = await it.wait_for_change(100, timeout_s=0.01)
        return old.version, same.version

    assert asyncio.run(scenario()) == (100, 100)


def test_what_an_unsettled_directory_lacks_is_kept():
    known = Placement(version=5, holders=(replica("a", 0).holder, replica("b", 1).holder))
    found = DirectorySnapshot(version=9, is_settled=False, replicas=(replica("b", 1), replica("c", 2)))
    merged = merge_placements(known, found, ROUTER)
    assert merged.version == 9
    assert {holder.replica_id for holder in merged.holders} == {"a", "b", "c"}


def test_what_a_settled_directory_lacks_is_gone():
    known = Placement(version=5, holders=(replica("a", 0).holder,))
    found = DirectorySnapshot(version=9, is_settled=True, replicas=())
    assert merge_placements(known, found, ROUTER).holders == ()


def test_replicas_on_a_node_that_drains_keep_what_nobody_else_holds():
    it = directory()
    for name, experts, node_id in (("a", (0, 1), "n1"), ("b", (1, 2), "n2"), ("c", (2,), "n1")):
        it.register(replace(replica(name, *experts), node_id=node_id), now=0)
    it.drain(frozenset({"n1"}))
    snapshot = it.snapshot()
    assert snapshot.version == 104
    assert snapshot.placement().replicas_by_expert == {0: ("a",), 1: ("b",), 2: ("b",)}
    assert ids(snapshot) == ["a", "b", "c"]
    it.drain(frozenset({"n1"}))
    assert it.snapshot().version == 104


def test_where_all_nodes_drain_everybody_keeps_its_work():
    it = directory()
    it.register(replace(replica("a", 0), node_id="n1"), now=0)
    it.register(replace(replica("b", 0), node_id="n2"), now=0)
    it.drain(frozenset({"n1", "n2"}))
    assert it.snapshot().placement().replicas_by_expert == {0: ("a", "b")}


def test_who_left_who_was_lost_and_what_drained_is_counted():
    it = directory()
    for name in ("a", "b"):
        it.register(replica(name, 0), now=0)
    it.deregister("a")
    it.deregister("a")
    it.advance(now=LEASE_S)
    for draining in ({"n1"}, {"n1", "n2"}, {"n2"}, {"n2", "n3"}):
        it.drain(frozenset(draining))
    assert it.departures == Departures(left=1, lost=1, drained_nodes=3)


def test_routers_are_told_of_each_other_while_they_follow():
    it = directory()
    place = Location(machine="m", domains=("a",))
    it.followed(router("r0", place), now=0)
    it.followed(router("r1", place), now=4)
    it.advance(now=LEASE_S)
    assert it.snapshot().routers_of(ROUTER) == {"r1": place}
    version = it.snapshot().version
    it.followed(router("r1", place), now=LEASE_S)
    assert it.snapshot().version == version


def test_a_directory_that_may_not_know_all_routers_names_none():
    it = directory()
    it.followed(router("r0", Location(machine="m")), now=0)
    assert merge_placements(Placement(version=0, holders=()), it.snapshot(), ROUTER).routers == {}


def test_a_router_is_told_of_those_that_share_its_load_and_no_others():
    it = directory()
    place = Location(machine="m")
    it.followed(router("r0", place), now=4)
    it.followed(router("r1", place, LONG_ROUTER), now=4)
    it.advance(now=LEASE_S)
    known = Placement(version=0, holders=())
    named = [merge_placements(known, it.snapshot(), each).routers for each in (ROUTER, LONG_ROUTER)]
    assert named == [{"r0": place}, {"r1": place}]


def test_routers_that_start_or_are_about_to_go_do_not_count_as_routers_with_load():
    it = directory()
    starts, goes, stays = (router(name, Location(machine=name)) for name in ("starts", "goes", "stays"))
    for each in (replace(starts, is_serving=False), goes, stays):
        it.followed(each, now=4)
    it.drain(frozenset({"node-goes"}))
    it.advance(now=LEASE_S)
    assert it.snapshot().routers_of(ROUTER).keys() == {"stays"}
    it.followed(starts, now=LEASE_S)
    assert it.snapshot().routers_of(ROUTER).keys() == {"starts", "stays"}


def test_what_kubernetes_says_of_a_machine_completes_what_its_replicas_and_routers_know():
    it = directory()
    held = replica("a", 0)
    machine = Location(machine="m", domains=("own", ""))
    it.register(replace(held, holder=replace(held.holder, location=machine)), now=0)
    it.know_machines({"m": ("rack", "zone"), "n": ("", "zone")})
    it.followed(router("r0", Location(machine="n", domains=("", ""))), now=0)
    it.advance(now=5)
    it.register(replace(held, holder=replace(held.holder, location=machine)), now=5)
    found = it.snapshot()
    assert found.replicas[0].holder.location.domains == ("own", "zone")
    assert found.routers_of(ROUTER)["r0"].domains == ("", "zone")
    it.know_machines({"m": ("rack", "zone"), "n": ("", "zone")})
    assert it.snapshot().version == found.version
