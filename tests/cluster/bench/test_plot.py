from xml.etree import ElementTree

import pytest

from cluster.bench import plot
from cluster.bench.measurement import Status
from cluster.bench.plot import check_plot, draw_plot
from cluster.bench.slo import Slo
from cluster.bench.summary import summarise
from protos.errors import BadConfig, InvalidRequest
from tests.cluster.bench.measured import answered, failed, not_sent, result, settings

RUN = [
    answered(0.0, [(0.5, 1), (1.0, 2)], scheduled_s=0.0),
    answered(1.0, [(1.5, 1), (2.0, 2)], scheduled_s=1.0),
    answered(3.0, [(3.5, 1)], status=Status.INTERRUPTED),
    failed(2.0, 3.0, message="<script>"),
    not_sent(2.5),
]


def draw(path, measurements, **changes):
    found = result(measurements, **changes)
    draw_plot(found, summarise(found), path)
    return path.read_bytes()


@pytest.mark.parametrize("measurements", [RUN, RUN[3:]], ids=["run", "failures"])
def test_a_png_is_drawn_of_whatever_happened(tmp_path, measurements):
    found = draw(tmp_path / "run.png", measurements, settings=settings(slo=Slo(ttft=1.0, tpot=0.5)))
    assert found.startswith(b"\x89PNG")
    assert len(found) > 20_000


def test_a_page_holds_its_picture_and_asks_the_network_for_nothing(tmp_path):
    page = draw(tmp_path / "run.html", RUN).decode()
    picture = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "src=" not in page
    assert 'href="http' not in page


def test_a_drawing_can_be_an_svg(tmp_path):
    assert b"<svg" in draw(tmp_path / "run.SVG", RUN)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match=r"--plot: expected a file ending in .html, .png, .svg"):
        check_plot(tmp_path / "run.pdf")


def test_without_matplotlib_the_command_to_install_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(BadConfig, match=r"pip install 'llama-herd\[plot\]'"):
        check_plot(tmp_path / "run.png")
