"""`herd plan` as a process: what it prints, its exit codes, and that it is quick."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from cluster.planner.read_question import Texts, read_question
from protos.errors import BadConfig
from tests.cluster.test_cli import assert_one_line, herd
from tests.conftest import ROOT


def test_help_teaches_by_example():
    done = herd("plan", "--help", COLUMNS="100")
    assert done.returncode == 0
    assert "\n  herd plan scout " in done.stdout


def test_it_tells_placement_bytes_limits_speeds_and_assumptions():
    done = herd("plan", "scout", "--gpus", "8xh100", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    for words in ("experts 0 to 3", "KV global", "tokens of one sequence alone", "seconds to the first token", "guess"):
        assert words in done.stdout


def test_json_says_everything_a_program_needs():
    done = herd("plan", "scout", "--gpus", "h100", "--quantize", "int4", "-c", "1", "--context", "256k", "--json")
    plan = json.loads(done.stdout)
    assert plan["fits"] is True
    assert plan["model"]["kv_global_bytes_per_token"] == 49_152
    assert plan["model"]["kv_local_bytes_per_sequence_at_most"] == 1_207_959_552
    assert sum(plan["placement"]["devices"][0]["bytes"].values()) == 80_000_000_000
    assert plan["fits_at_most"]["context_of_one_sequence"] >= 262_144
    step = plan["expected"]["lone_step_s"]
    assert sum(seconds for part, seconds in step.items() if part != "total") == pytest.approx(step["total"])
    assert {each["origin"] for each in plan["assumptions"]} <= {"measured", "vendor", "published", "setting", "guess"}
    assert plan["not_in_this_version"] == []


def test_values_name_the_command_that_made_them():
    done = herd("plan", "maverick", "--gpus", "2x8xh200", "--quantize", "fp8", "--copies", "2", "--values")
    assert done.stdout.startswith("# herd plan maverick --gpus 2x8xh200 --quantize fp8 --copies 2 --values\n")
    assert yaml.safe_load(done.stdout)["settings"]["experts"]["replicas_per_group"] == 2


def test_it_says_no_on_one_line_with_ways_out():
    done = herd("plan", "scout", "--gpus", "h100", "--context", "32k", "-c", "4")
    assert_one_line(done, 1, "expected room", "193.3 GB", "found 1xh100", "--quantize int4", "--gpus 4xh100")
    assert done.stdout == ""


def test_it_says_no_to_programs_too():
    done = herd("plan", "scout", "--gpus", "h100", "--context", "32k", "-c", "4", "--json")
    refusal = json.loads(done.stdout)
    assert (done.returncode, refusal["fits"]) == (1, False)
    assert "--quantize int4" in refusal["ways_out"]


def test_the_demo_model_is_planned_for_the_memory_that_is_free_here():
    done = herd("plan", "demo", "--gpus", "cpu", "-c", "1", "--json")
    assert json.loads(done.stdout)["asked"]["weights"] == "fp32"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("scout", "--gpus", "8xh10"), "kinds are"),
        (("scuot", "--gpus", "h100"), "did you mean scout?"),
        (("/none/here", "--gpus", "h100"), "found no /none/here"),
        (("scout", "--gpus", "h100", "--context", "11M"), "model's 10,485,760 tokens"),
        (("scout", "--gpus", "h100", "--context", "many"), "for example 128k"),
        (("scout", "--gpus", "h100", "--quantize", "int3"), "expected one of fp32, bf16, fp8, int8, int4"),
        (("scout", "--gpus", "h100", "--quantize", "fp32"), "choose bf16"),
        (("scout", "--gpus", "h100", "--kv-dtype", "int4"), "expected one of float32"),
        (("scout", "--gpus", "h100", "--concurrency", "0"), "--concurrency: expected at least 1"),
        (("scout", "--gpus", "8xh100", "--json", "--values"), "choose one"),
        (("scout", "--gpus", "h100", "--memory", "lots"), "for example 16GiB"),
    ],
)
def test_what_cannot_be_planned_for_is_refused_with_what_can(arguments, said):
    assert_one_line(herd("plan", *arguments), 2, said)


@pytest.mark.parametrize(
    ("text", "tokens"), [("32k", 32_768), ("1M", 1_048_576), ("1.5k", 1536), ("100000", 100_000), ("10_000", 10_000)]
)
def test_tokens_are_counted_in_powers_of_two(text, tokens):
    assert read_question(Texts(model="scout", gpus="h100", context=text)).context == tokens


def test_the_context_that_is_not_given_is_one_the_model_has():
    assert read_question(Texts(model="demo", gpus="cpu", memory="4GiB")).context == 4096
    assert read_question(Texts(model="scout", gpus="h100")).context == 32_768


def test_a_folder_without_weights_is_planned_from_its_configuration(tmp_path):
    (tmp_path / "config.json").write_text((ROOT / "models" / "demo" / "config.json").read_text())
    assert read_question(Texts(model=str(tmp_path), gpus="cpu", memory="4GiB")).config.num_experts == 8


def test_weights_in_a_form_that_is_not_read_are_refused_as_herd_serve_refuses_them(tmp_path):
    config = json.loads((ROOT / "models" / "demo" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(BadConfig, match="found gptq, which is not read"):
        read_question(Texts(model=str(tmp_path), gpus="h100"))


def test_it_imports_neither_torch_nor_ray():
    script = (
        "import sys\n"
        "from cluster.planner.advice import plan_or_refuse\n"
        "from cluster.planner import report, values, document\n"
        "from cluster.planner.read_question import Texts, read_question\n"
        "plan_or_refuse(read_question(Texts(model='scout', gpus='8xh100')))\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
