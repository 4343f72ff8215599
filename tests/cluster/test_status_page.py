"""The status page in a real browser, served by a real front door over a made-up cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster.limits import FrontDoorLimits
from cluster.service import InferenceService
from protos.errors import NoReplica
from tests.cluster.browser import Browser, Page, find_chromium
from tests.cluster.busy_cluster import HOSTILE, busy_placement, router_loads, with_experts
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import ScriptedRouter, says


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium here: the status page is not looked at")
    browser = Browser(executable, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


class Shown:
    """The page of a front door before a busy cluster."""

    def __init__(self, door: LiveFrontDoor, router: ScriptedRouter, page: Page) -> None:
        self.door, self.router, self.page = door, router, page

    def asks(self) -> int:
        """Return how often the page has asked."""
        return sum(url.endswith("status.json") for url in self.page.requested())


@pytest.fixture
def show(browser, id_model):
    """Serve a cluster and open its page; afterwards nothing must have gone wrong in it."""
    opened: list[Shown] = []

    def open_page(num_experts: int, num_groups: int, num_layers: int = 4, **look) -> Shown:
        model = with_experts(id_model, num_experts)
        router = ScriptedRouter(says(1))
        router.placement = busy_placement(num_experts, num_groups, num_layers)
        router.loads = router_loads(ejected=("experts-1-0", HOSTILE))
        door = LiveFrontDoor(InferenceService(model, router, FrontDoorLimits(health_timeout_s=20)))
        shown = Shown(door.__enter__(), router, browser.open(door.url, **look))
        opened.append(shown)
        shown.page.wait("document.querySelector('#heat td.held')")
        return shown

    yield open_page
    for shown in opened:
        page = shown.page
        assert page.complaints() == []
        assert all(url.startswith((f"{shown.door.url}/", "data:")) for url in page.requested())
        assert page.requests_at_once("status.json") <= 1
        page.close()
        shown.door.__exit__()


@pytest.mark.parametrize(("num_experts", "num_groups"), [(16, 4), (128, 8)])
def test_the_heat_map_shows_every_copy_of_every_expert(show, num_experts, num_groups):
    page = show(num_experts, num_groups).page
    replicas = 2 * num_groups
    copies = num_groups - 1  # of expert 0, beyond its group
    assert page.run("document.querySelectorAll('#heat tr[data-row]').length") == replicas
    assert page.run("document.querySelectorAll('#heat tr[data-row] td').length") == replicas * num_experts
    assert page.run("document.querySelectorAll('#heat tr[data-row] td.held').length") == 2 * num_experts + copies
    assert page.run("document.querySelectorAll('#heat td.copy').length") == copies
    labels = page.run("[...document.querySelectorAll('#heat td.held')].map((each) => each.ariaLabel)")
    assert f"expert 0, {2 + copies} copies together: {1.28 + 0.64 * copies:.1f}k tokens/s" in labels
    assert "expert 0 at experts-1-0: 640 tokens/s, a copy beyond its group" in labels
    assert f"expert 0: {2 + copies} replicas hold it" == page.run("document.querySelector('#heat td.count').ariaLabel")


def test_busier_cells_are_further_from_the_background_and_their_text_is_readable(show):
    for dark in (False, True):
        page = show(16, 4, dark=dark).page
        heats, ratios = page.run(CONTRASTS)
        assert heats == sorted(heats)
        assert len(set(heats)) > 5
        assert min(ratios) >= 4.5


CONTRASTS = """(() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (color) => {
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue] = [...context.getImageData(0, 0, 1, 1).data].map((each) => each / 255)
      .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  const cell = document.querySelector("#heat td.held"), heats = [], ratios = [];
  for (let heat = 0; heat <= 1.001; heat += 0.05) {
    cell.style.setProperty("--heat", heat);
    const style = getComputedStyle(cell), back = luminance(style.backgroundColor);
    heats.push(contrast(back, page));
    ratios.push(contrast(back, luminance(style.color)));
  }
  return [heats, ratios];
})()"""


def test_tables_tell_routers_replicas_and_events(show):
    page = show(16, 4).page
    [router_a, router_b] = page.texts("#routers tbody tr")
    assert "router-a11 / 1635,100" in router_a
    assert f"{HOSTILE}, experts-1-0" in router_a
    assert "nobody" in router_b
    replicas = page.texts("#experts .list tbody tr")
    assert [("passed over" in each) for each in replicas].count(True) == 2
    assert any("8-11, copy of 0" in each and "node-2" in each for each in replicas)
    assert page.texts("#experts-summary") == ["6 serving, 2 passed over; 35 copies of 16 experts; placement 17"]
    events = page.texts("#events tbody tr")
    assert f"{HOSTILE}serves {HOSTILE}" in events[0]
    assert "lost: no heartbeat came any more" in events[1]


def test_replicas_of_all_deployments_are_counted_by_state_and_listed(show):
    page = show(16, 4).page
    assert page.texts("#states li") == ["● 11 ready", "◔ 3 starting", "◌ 1 draining", "▲ 1 silent", "▲ 1 failed"]
    rows = page.texts("#replicas tbody tr")
    assert len(rows) == 17
    assert rows[0].startswith("▲ failedExperts-7expected 64 tensors in the checkpoint, found 63")
    assert rows[1].startswith("▲ silentExperts-6no heartbeat comes")
    assert "Experts-51.4 GiB of 5.6 GiBexperts-5-l" in rows[2]
    assert "Routerwaits for experts [3]" in rows[3]
    assert "FrontDoorwaits for a process" in rows[4]
    assert rows[5].startswith("◌ drainingExperts-4")
    assert page.run("document.querySelector('#replicas .bar i').style.width") == "25%"


def test_a_replica_that_comes_to_serve_is_counted_anew(show):
    shown = show(16, 4)
    roster = [replace(each, state="ready") for each in shown.router.placement.roster]
    shown.router.placement = replace(shown.router.placement, roster=tuple(roster))
    shown.page.wait("document.querySelector('#states li').textContent === '● 17 ready'")
    assert shown.page.texts("#replicas .bar") == []


def test_states_that_may_be_old_say_so_and_nothing_else_does(show):
    shown = show(16, 4)
    shown.router.placement = replace(shown.router.placement, roster_problem="the controller is away")
    shown.page.wait("document.querySelector('#replicas.stale')")
    assert shown.page.texts("#replicas .why")[0].endswith("the controller is away")
    assert not shown.page.run("document.getElementById('experts').classList.contains('stale')")


def test_one_process_without_replicas_has_no_list_of_them(show):
    shown = show(16, 4)
    shown.router.placement = replace(shown.router.placement, roster=())
    shown.page.wait("document.getElementById('replicas').hidden")


@pytest.mark.parametrize(("num_experts", "num_groups", "num_layers"), [(8, 2, 8), (128, 8, 24)])
def test_the_heat_map_by_layer_has_a_cell_for_each_expert_in_each_layer(show, num_experts, num_groups, num_layers):
    page = show(num_experts, num_groups, num_layers).page
    page.run("document.getElementById('map-by-layer').click()")
    assert page.run("document.getElementById('heat').offsetParent === null")
    assert page.run("document.querySelectorAll('#layer-heat td.held').length") == num_experts * num_layers
    layers = page.texts("#layer-heat tbody th")
    assert layers == ["copies", *(f"layer {layer}" for layer in range(1, 2 * num_layers, 2))]
    page.run("document.querySelector('#layer-heat td.held').dispatchEvent(new Event('pointerover', {bubbles: true}))")
    copies = 2 + num_groups - 1
    assert page.texts("#heat-cell") == [f"layer 1, expert 0: 640 tokens/s, {copies} copies"]


def test_the_chosen_map_is_in_the_address_and_is_shown_again(show):
    shown = show(16, 4)
    shown.page.run("document.getElementById('map-by-layer').click()")
    assert shown.page.run("location.hash") == "#by-layer"
    shown.page.call("Page.reload")
    shown.page.wait("document.querySelector('#layer-heat td.held')")
    shown.page.run("document.getElementById('map-by-replica').click()")
    assert shown.page.run("location.hash") == ""
    assert shown.page.run("document.querySelector('#layer-heat').offsetParent === null")


def test_a_load_that_is_not_known_by_layer_is_shown_by_replica(show):
    shown = show(16, 4)
    shown.page.run("document.getElementById('map-by-layer').click()")
    shown.router.placement = replace(shown.router.placement, layer_load=None)
    shown.page.wait("document.getElementById('map-by-layer').disabled")
    assert shown.page.run("document.getElementById('heat').offsetParent !== null")


def test_the_arrow_keys_go_from_cell_to_cell(show):
    page = show(128, 8).page
    page.run("document.getElementById('map-by-layer').click()")
    press = "document.querySelector('#layer-heat').parentNode.focus();"
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowUp"):
        event = f"new KeyboardEvent('keydown', {{ key: '{key}', bubbles: true }})"
        page.run(f"{press} document.activeElement.dispatchEvent({event})")
    assert page.texts("#heat-cell")[0].startswith("layer 1, expert 0: ")
    assert page.run("document.querySelectorAll('#layer-heat .at').length") == 1


def test_what_a_screen_reader_reads_has_words(show):
    page = show(128, 8).page
    page.run("document.getElementById('map-by-layer').click()")
    assert page.run("document.querySelectorAll('#layer-heat td.held:not([aria-label$=\"tokens/s\"])').length") == 0
    assert page.run("[...document.querySelectorAll('[tabindex]:not(pre)')].every((each) => each.ariaLabel)")


def test_names_that_are_code_stay_text(show):
    page = show(16, 4).page
    assert HOSTILE in page.texts("#experts .list td")
    assert page.run("document.images.length") == 0
    assert page.run("document.title") == "tiny - Herd"


def test_the_page_does_not_scroll_sideways_on_a_phone(show):
    page = show(128, 8, width=400).page
    assert page.run("document.documentElement.scrollWidth") <= 400


def test_rates_come_from_two_answers(show):
    shown = show(16, 4)
    assert shown.page.texts("#rate") == ["-"]
    shown.router.loads = router_loads(ejected=(), generated_tokens=200_000)
    shown.page.wait("/[0-9]/.test(document.getElementById('rate').textContent)")
    shown.page.wait("document.querySelector('#rate-line path').getAttribute('d')")
    assert not shown.page.run("document.body.innerText.includes('▲ passed over')")


def test_what_no_longer_answers_is_greyed_with_since_when(show):
    shown = show(16, 4)
    shown.router.placement = NoReplica("the directory is away")
    shown.page.wait("document.getElementById('experts').classList.contains('stale')")
    [why] = shown.page.texts("#experts .why")
    assert re.fullmatch(r"nothing newer since \d\d:\d\d:\d\d: the directory is away", why)
    assert not shown.page.run("document.getElementById('routers').classList.contains('stale')")
    assert shown.page.run("document.querySelectorAll('#heat tr[data-row]').length") == 8
    shown.router.placement = busy_placement(16, 4)
    shown.page.wait("!document.querySelector('.stale')")
    assert shown.page.texts("#live") == ["live"]


def test_a_server_that_is_gone_is_said_and_its_last_state_kept(show):
    page = show(16, 4).page
    page.run("window.fetch = () => Promise.reject(new Error('refused'))")
    page.wait("document.querySelectorAll('.stale').length === 5")
    assert page.texts("#live") == ["no answer"]
    assert page.texts("#routers .why")[0].endswith("this server does not answer (refused)")
    assert "router-a" in page.texts("#routers tbody tr")[0]


def test_a_hidden_page_does_not_ask(show):
    shown = show(16, 4)
    hide = "Object.defineProperty(document, 'hidden', {{ value: {}, configurable: true }});"
    change = "document.dispatchEvent(new Event('visibilitychange'));"
    shown.page.run(hide.format("true") + change)
    shown.page.run("new Promise((done) => setTimeout(done, 100))")  # what was under way comes to its end
    before = shown.asks()
    shown.page.run("new Promise((done) => setTimeout(done, 1300))")  # longer than between two questions
    assert shown.asks() == before
    shown.page.run(hide.format("false") + change)
    assert shown.asks() == before + 1
