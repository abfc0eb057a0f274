"""The ticks of schedules: Debian's rules, time zones, and what is refused."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.model import Cron
from fastlane_grpc.schedule.cron import CronInvalid, Ticks, jittered, plain_expression, time_zone

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ZONES = ("", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")


def ticks(expression: str, zone: str = "", after: datetime = NOW, count: int = 3) -> list[str]:
    """The next ticks, in UTC."""
    found = islice(Ticks(Cron(expression, zone)).all_after(after), count)
    return [f"{tick:%Y-%m-%d %H:%M}" for tick in found]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ---- the rules


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/20 * * * *", ["2026-01-01 00:20", "2026-01-01 00:40", "2026-01-01 01:00"]),
        ("5,10-11 3 * * *", ["2026-01-01 03:05", "2026-01-01 03:10", "2026-01-01 03:11"]),
        ("0 12 * * mon-wed", ["2026-01-05 12:00", "2026-01-06 12:00", "2026-01-07 12:00"]),
        ("0 0 1 JAN,jul *", ["2026-07-01 00:00", "2027-01-01 00:00", "2027-07-01 00:00"]),
        ("0 0 * * 7", ["2026-01-04 00:00", "2026-01-11 00:00", "2026-01-18 00:00"]),
        ("0 0 13 * fri", ["2026-01-02 00:00", "2026-01-09 00:00", "2026-01-13 00:00"]),
        ("0 0 */10 * fri", ["2026-05-01 00:00", "2026-07-31 00:00", "2026-08-21 00:00"]),
        ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00", "2036-02-29 00:00"]),
        ("@hourly", ["2026-01-01 01:00", "2026-01-01 02:00", "2026-01-01 03:00"]),
        ("@Weekly", ["2026-01-04 00:00", "2026-01-11 00:00", "2026-01-18 00:00"]),
        ("@monthly", ["2026-02-01 00:00", "2026-03-01 00:00", "2026-04-01 00:00"]),
        ("@yearly", ["2027-01-01 00:00", "2028-01-01 00:00", "2029-01-01 00:00"]),
    ],
)
def test_an_expression_ticks_by_the_rules_of_debian(expression: str, expected: list[str]) -> None:
    assert ticks(expression) == expected


def test_the_first_tick_is_strictly_after_the_given_time() -> None:
    assert ticks("0 * * * *", after=NOW, count=1) == ["2026-01-01 01:00"]
    assert ticks("0 * * * *", after=NOW - timedelta(microseconds=1), count=1) == ["2026-01-01 00:00"]


@pytest.mark.parametrize("zone", ["", "America/New_York", "Asia/Kathmandu"])
def test_a_schedule_may_begin_with_the_first_time_of_all(zone: str) -> None:
    first = datetime.min.replace(tzinfo=UTC)
    assert Ticks(Cron("0 * * * *", zone, begin_time=first)).after(NOW - MINUTE) == Ticks(Cron("0 * * * *", zone)).after(
        NOW - MINUTE
    )
    assert Ticks(Cron("* * * * *", zone)).after(first) == datetime(1970, 1, 1, 0, 1, tzinfo=UTC)
    assert Ticks(Cron("* * * * *", zone)).after(datetime.max.replace(tzinfo=UTC)) is None


def test_either_day_suffices_if_both_are_given() -> None:
    both = set(ticks("0 0 1,15 * mon", count=40))
    assert set(ticks("0 0 1,15 * *", count=10)) | set(ticks("0 0 * * mon", count=10)) <= both


# ---- daylight saving


def test_a_tick_in_the_skipped_hour_happens_right_after_it() -> None:
    # In Berlin clocks went from 02:00 to 03:00 on 2026-03-29, at 01:00 UTC.
    assert ticks("30 2 * * *", "Europe/Berlin", at("2026-03-28 12:00")) == [
        "2026-03-29 01:00",
        "2026-03-30 00:30",
        "2026-03-31 00:30",
    ]


def test_a_tick_in_the_repeated_hour_happens_once() -> None:
    # In Berlin clocks went from 03:00 to 02:00 on 2026-10-25, at 01:00 UTC.
    assert ticks("30 2 * * *", "Europe/Berlin", at("2026-10-24 12:00")) == [
        "2026-10-25 00:30",
        "2026-10-26 01:30",
        "2026-10-27 01:30",
    ]


def test_a_tick_of_the_repeated_hour_does_not_come_back_in_its_second_half() -> None:
    # 02:10 for the second time: 02:30 has happened an hour ago.
    assert ticks("30 2 * * *", "Europe/Berlin", at("2026-10-25 01:10"), 1) == ["2026-10-26 01:30"]


def test_ticks_of_every_hour_follow_elapsed_time_where_clocks_change() -> None:
    for begin in ("2026-03-28 23:30", "2026-10-24 22:30"):
        found = list(islice(Ticks(Cron("0 * * * *", "Europe/Berlin")).all_after(at(begin)), 6))
        assert {later - earlier for earlier, later in pairwise(found)} == {HOUR}


def test_a_change_of_half_an_hour_keeps_one_tick_a_day() -> None:
    # On Lord Howe Island clocks change by half an hour.
    found = list(islice(Ticks(Cron("45 1 * * *", "Australia/Lord_Howe")).all_after(NOW), 400))
    assert all(DAY - HOUR <= later - earlier <= DAY + HOUR for earlier, later in pairwise(found))


@given(
    st.sampled_from(["*/15 * * * *", "0 * * * *", "30 2 * * *", "0,30 1-3 * * *", "5 0 * * sun", "0 0 1 * *"]),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2000, 1, 1), datetime(2049, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_ticks_grow_and_do_not_depend_on_where_the_search_began(expression: str, zone: str, begin: datetime) -> None:
    schedule = Ticks(Cron(expression, zone))
    found = list(islice(schedule.all_after(begin), 5))
    assert begin < found[0]
    assert all(earlier < later for earlier, later in pairwise(found))
    for earlier, later in pairwise(found):
        assert schedule.after(earlier) == later
        assert schedule.after(earlier + (later - earlier) / 2) == later
    assert schedule.latest(begin, found[-1]) == found[-1:]
    assert schedule.latest(begin, found[-1], most=3) == found[-3:]
    assert schedule.latest(begin, found[0] - timedelta(microseconds=1)) == []
    assert schedule.count(begin, found[-1], 100) == 4
    assert schedule.count(begin, found[-1], 2) == 2


# ---- begin and end


def test_a_schedule_ticks_from_its_begin_to_its_end_both_included() -> None:
    schedule = Ticks(Cron("0 * * * *", begin_time=NOW + 2 * HOUR, end_time=NOW + 4 * HOUR))
    assert list(schedule.all_after(NOW)) == [NOW + 2 * HOUR, NOW + 3 * HOUR, NOW + 4 * HOUR]


def test_a_schedule_does_not_tick_after_the_expire_time_of_its_job() -> None:
    schedule = Ticks(Cron("0 * * * *"), expire_time=NOW + HOUR)
    assert list(schedule.all_after(NOW)) == [NOW + HOUR]


def test_a_schedule_at_the_end_of_time_ends() -> None:
    assert Ticks(Cron("0 0 1 1 *")).after(datetime(9999, 12, 31, tzinfo=UTC)) is None


# ---- jitter


@given(st.text(max_size=40), st.timedeltas(timedelta(), DAY))
def test_jitter_is_within_its_bound_and_always_the_same(job_id: str, jitter: timedelta) -> None:
    due_time = jittered(job_id, NOW, jitter)
    assert NOW <= due_time <= NOW + jitter
    assert jittered(job_id, NOW, jitter) == due_time


def test_jitter_spreads_jobs_and_ticks() -> None:
    spread = {jittered(f"job-{number}", NOW, HOUR) for number in range(100)}
    spread |= {jittered("job", NOW + number * MINUTE, HOUR) - number * MINUTE for number in range(100)}
    assert len(spread) == 200
    assert max(spread) - min(spread) > HOUR / 2
    assert jittered("job", NOW, None) == NOW


# ---- what is refused


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "is required"),
        ("hourly", "has 1 field; it must have five"),
        ("* * * *", "has 4 fields; it must have five"),
        ("0 0 * * * *", "has 6 fields; it must have five"),
        ("60 * * * *", "the minute '60' must be *, 0 to 59"),
        ("* 24 * * *", "the hour '24'"),
        ("* * 0 * *", "the day of month '0'"),
        ("* * 32 * *", "the day of month '32'"),
        ("* * * 13 *", "the month '13'"),
        ("* * * * 8", "the day of week '8'"),
        ("* * * foo *", "the month 'foo'"),
        ("*/0 * * * *", "the minute '*/0'"),
        ("5-1 * * * *", "the minute '5-1'"),
        ("1-2-3 * * * *", "the minute '1-2-3'"),
        (", * * * *", "the minute ','"),
        ("-1 * * * *", "the minute '-1'"),
        ("* * L * *", "the day of month 'L'"),
        ("* * LW * *", "the day of month 'LW'"),
        ("* * * * 5L", "the day of week '5L'"),
        ("* * * * mon#2", "the day of week 'mon#2'"),
        ("\u0660 * * * *", "the minute"),
        ("0 0 30 2 *", "'0 0 30 2 *' never happens: no such day exists"),
        ("0 0 31 4,6,9,11 *", "never happens"),
        ("@reboot", "'@reboot' is not one of @yearly"),
        ("*" + " " * 300 + "* * * *", "has 308 characters; at most 256 are allowed"),
    ],
)
def test_an_expression_that_cannot_be_is_refused_and_says_why(expression: str, why: str) -> None:
    with pytest.raises(CronInvalid) as refused:
        plain_expression(expression)
    assert refused.value.field == "expression"
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("new york", "did you mean America/New_York?"),
        ("qqqqqqqq", "use a name as Europe/Berlin, or leave it empty for UTC"),
        ("../../etc/passwd", "is not a time zone"),
        ("/etc/localtime", "is not a time zone"),
        ("localtime", "is not a time zone"),
        ("Factory", "is not a time zone"),
        ("right/Europe/Berlin", "did you mean Europe/Berlin?"),
        ("posix/Europe/Berlin", "did you mean Europe/Berlin?"),
        ("\0", "is not a time zone"),
        ("x" * 1000, "is not a time zone"),
    ],
)
def test_an_unknown_time_zone_is_refused_and_the_nearest_is_named(zone: str, hint: str) -> None:
    with pytest.raises(CronInvalid, match="is not a time zone") as refused:
        time_zone(zone)
    assert refused.value.field == "time_zone"
    assert hint in str(refused.value)


@given(st.text(alphabet="0123456789*,-/ @LW#abcJANmon", max_size=30))
def test_an_expression_is_either_refused_or_ticks(expression: str) -> None:
    try:
        schedule = Ticks(Cron(expression))
    except CronInvalid:
        return
    assert schedule.after(NOW) is not None
    assert schedule.description


@pytest.mark.parametrize(
    ("expression", "zone", "words"),
    [
        ("30 2 * * *", "Europe/Berlin", "at 02:30 every day, Europe/Berlin"),
        ("*/5 * * * *", "", "every fifth minute of every hour, UTC"),
    ],
)
def test_a_schedule_is_described_in_words(expression: str, zone: str, words: str) -> None:
    assert Ticks(Cron(expression, zone)).description == words
