"""Every command of the documentation is run, as far as that goes without a cluster or a network."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from cluster.auth.key_file import read_key_file
from cluster.config_source import load_config
from cluster.kube_doctor import OLDEST_KUBERAY
from tests.chart.chart import CHART, notes, template
from tests.chart.programs import find_program
from tests.docs import pages
from tests.docs.pages import PAGES, Command
from tests.docs.reader import NEEDS_NETWORK, Reader, options_of
from tests.kube.api_server import FakeApiServer

TYPED = [page for page in PAGES if pages.commands_of(page, pages.text_of(page))]
SHOWN = [each for page in PAGES for each in pages.files_of(page, pages.text_of(page))]
SENTENCES = sorted({each.text for page in PAGES for each in pages.sentences_of(page, pages.text_of(page))})
TLS = "--set=settings.tls.cert=/etc/tls/tls.crt,settings.tls.client_ca=/etc/tls/ca.crt,operatorKey.tlsSecret=operator"

KEYS = "--set=secrets[0].name=keys,secrets[0].mountPath=/etc/keys,settings.auth.keys_file=/etc/keys/keys.yaml"


@pytest.fixture
def reader(needs_helm, tmp_path, monkeypatch):
    """Somebody in an empty folder, with a cluster that has nothing."""
    monkeypatch.chdir(tmp_path)
    with FakeApiServer() as api:
        yield Reader(tmp_path, api)


def type_all(reader, commands):
    """Type commands in turn; return those that fail, with the reason."""
    failures = []
    for each in commands:
        try:
            reader.type(each)
        except Exception as error:  # noqa: BLE001  whatever it is, the page and the line have to be told
            failures.append(f"{each}\n    {type(error).__name__}: {error}")
    return failures


@pytest.mark.parametrize("page", TYPED)
def test_every_command_of_a_page_does_what_it_says(page, reader, tmp_path):
    text = pages.text_of(page)
    pages.write_files(page, text, tmp_path)
    failures = type_all(reader, pages.commands_of(page, text))
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    ("installed", "upgraded"),
    [
        ("", None),
        (TLS, None),
        ("", "--set=settings.router.replicas=3,settings.experts.replicas_per_group=2"),
        ("--set=autoscaling.enabled=true", "--set=autoscaling.enabled=true,settings.scaling.router_max_replicas=3"),
    ],
)
def test_every_command_that_helm_prints_does_what_it_says(installed, upgraded, reader):
    reader.type(Command("", 0, f"helm install herd ./helm -n llama {installed}"))
    if upgraded is not None:
        reader.type(Command("", 0, f"helm upgrade herd ./helm -n llama {upgraded}"))
    last = [installed] if upgraded is None else [upgraded, "--is-upgrade"]
    commands = pages.commands_of("NOTES.txt", pages.printed(notes(*filter(None, last))))
    assert len(commands) >= 6
    assert any("patch" in each.text for each in commands) is (upgraded is not None)
    failures = type_all(reader, commands)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    "wrong",
    [
        "helm install herd ./helm --set image.tga=1",
        "helm rollback herd 1",
        "helm repo add other https://example.com",
        "herd serve --set router.slot=3",
        "herd serve --sets router.slots=3",
        "herd plan scout --gpus 8xh10",
        "kubectl get raycluster",
        "kubectl create secret generic a --from-file=missing.pem",
        "make everything",
        "python -m benchmarks.missing",
        "python -m benchmarks.simulate --days 1",
        "pip install 'llama-herd[plots]'",
        "curl http://localhost:8000/v2",
        """curl localhost:8000/v1/complitions -d '{"prompt": "a"}'""",
        """curl localhost:8000/v1/completions -d '{"promt": 1}'""",
        """curl localhost:8000/v1/completions -d '{"prompt": "a", "max_tokns": 1}'""",
        """curl localhost:8000/v1/completions -d '{"prompt": "a", "model": "dmeo"}'""",
        "docker build --tag herd --build-arg TORCH_INDX=https://example.com .",
        "docker build --tga herd .",
        "terraform apply",
    ],
)
def test_a_command_that_is_wrong_or_that_no_rule_covers_is_told(reader, wrong):
    assert len(type_all(reader, [Command("", 0, wrong)])) == 1


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("herd plan demo --gpus h100", "herd: expected room\n"),
        ("herd plan scout --gpus h100", "scout in bf16 on h100\n"),
        ("herd plan scout --gpus h100", "herd: expected room\n"),
        ("herd plan demo --gpus h100", "demo in fp8 on h100\n...\n"),
        ("herd serve --set router.slots=3", "herd: expected a Herd\n"),
    ],
)
def test_what_a_page_shows_is_compared_with_what_is_printed(reader, command, shown):
    assert len(type_all(reader, [Command("", 0, command, shown)])) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["helm upgrade herd ./helm"],
        ["helm install herd ./helm", "helm install herd ./helm"],
        ["helm install herd ./helm", "helm test herd -n elsewhere"],
        ["helm install herd ./helm -n llama", "helm upgrade herd ./helm"],
        ["helm install herd ./helm", "helm uninstall herd", "helm test herd"],
        ["helm install herd ./helm --values=secure.yaml", "helm upgrade herd ./helm"],
        [f"helm install herd ./helm {KEYS}"],
        ["kubectl create secret generic keys --from-file=key=ca.pem", f"helm install herd ./helm {KEYS}"],
        ["helm install herd ./helm --set=operatorKey.secret=operator"],
    ],
)
def test_helm_wants_a_release_where_it_is_and_secrets_with_what_is_read(wrong, reader, tmp_path):
    (tmp_path / "secure.yaml").touch()
    *before, last = [Command("", 0, each) for each in wrong]
    assert type_all(reader, before) == []
    assert len(type_all(reader, [last])) == 1


@pytest.mark.parametrize("command", SENTENCES)
def test_a_command_that_a_sentence_names_has_these_options(command, reader):
    program, *words = command.replace("...", "").replace("HOST:PORT", "").split()
    options = {each for each in words if each.startswith("--")}
    if program == "herd":
        assert options <= options_of(words)
    elif program in ("helm", "kubectl"):
        done = subprocess.run(
            [find_program(program), words[0], "--help"], capture_output=True, text=True, timeout=60, check=True
        )
        assert all(each in done.stdout for each in options)
    else:
        reader.type(Command("", 0, " ".join([program, *words])))


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_in_a_block_that_nobody_runs(page):
    text = pages.text_of(page)
    seen = {
        line for each in pages.commands_of(page, text) for line in (*each.text.splitlines(), *each.shown.splitlines())
    }
    typed = re.findall(r"^(?:\$ |    )?((?:herd|helm|kubectl|curl|docker|make|pip|python) .*)$", text, re.MULTILINE)
    assert [each for each in typed if each not in seen] == []


@pytest.mark.parametrize("shown", SHOWN, ids=[f"{each.page}-{number}" for number, each in enumerate(SHOWN)])
def test_every_file_that_a_page_shows_is_read_as_what_it_is(shown, tmp_path):
    file = tmp_path / "shown.yaml"
    file.write_text(shown.text)
    content = yaml.safe_load(shown.text)
    if isinstance(content, list):
        assert [each.name for each in read_key_file(file)] == ["alice", "operator"]
    elif "scrape_configs" in content:
        [job] = content["scrape_configs"]
        assert job["static_configs"][0]["targets"][0].endswith(f":{load_config().http.port}")
    elif content.keys() <= yaml.safe_load((CHART / "values.yaml").read_text()).keys():
        done = template(f"--values={file}")
        assert done.returncode == 0, done.stderr
    else:
        load_config(file)


def test_what_needs_the_network_is_still_in_the_page_and_of_the_oldest_operator_there_may_be():
    page = pages.text_of("docs/kubernetes.md")
    assert all(f"$ helm {each}\n" in page for each in NEEDS_NETWORK)
    assert f"--version {'.'.join(map(str, OLDEST_KUBERAY))}" in page
