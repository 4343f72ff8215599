from cluster.bench.caveats import find_caveats
from cluster.bench.summary import summarise
from tests.cluster.bench.measured import answered, not_sent, result, settings

GOOD = answered(0.0, [(0.125, 1), (0.25, 2)])


def caveats(measurements, **changes):
    found = result(measurements, **changes)
    return find_caveats(found, summarise(found))


def test_a_clean_run_has_none():
    assert caveats([GOOD]) == []


def test_what_was_not_sent_is_said_loudly_and_first():
    first, second = caveats([GOOD, not_sent(1.0)], num_clipped=3)
    assert first.is_severe
    assert "1 requests were NOT SENT: --max-in-flight 1024" in first.text
    assert "3 requests were cut to the context" in second.text


def late(by_s: float, ttft_s: float):
    return answered(1.0 + by_s, [(1.0 + by_s + ttft_s, 3)], scheduled_s=1.0)


def test_a_load_generator_that_is_late_says_so():
    [caveat] = caveats([late(0.25, 1.0)])
    assert caveat.is_severe
    assert "COULD NOT KEEP UP: it sent requests up to 250.0 ms late" in caveat.text


def test_lateness_is_measured_by_the_time_to_the_first_token():
    assert caveats([late(0.0625, 1.0)]) == []
    assert len(caveats([late(0.0625, 0.5)])) == 1
    assert caveats([late(0.004, 0.001)]) == []


def test_a_load_generator_that_reads_slowly_says_so():
    [caveat] = caveats([GOOD], lags_s=[0.05] * 10)
    assert "WAS SLOW to read: its event loop woke up to 50.0 ms late" in caveat.text


def test_short_answers_are_a_mistake_where_the_models_end_was_to_be_ignored():
    short = answered(0.0, [(0.5, 1)], max_tokens=3)
    [caveat] = caveats([short, GOOD])
    assert caveat.is_severe
    assert "1 of 2 answers are shorter" in caveat.text
    assert not caveats([short], settings=settings(endpoint={"ignores_eos": False}))[0].is_severe


def test_messages_of_unknown_size_are_said():
    [caveat] = caveats([answered(0.0, [(0.5, None), (1.0, None)], usage_completion_tokens=3)])
    assert "do not tell the tokens of each message" in caveat.text


def test_runs_that_ended_early_are_said():
    assert "interrupted" in caveats([GOOD], is_interrupted=True)[0].text
    assert "nobody to connect to for 10 s" in caveats([GOOD], gave_up=True)[0].text
