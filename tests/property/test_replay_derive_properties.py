"""Sessions with derived candles: the model's, in total order, the same wherever one begins."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from derive_cases import Case, cases
from derive_model import FIELDS, derive
from hypothesis import given, settings
from hypothesis import strategies as st
from small_reads import SmallReads

from tardisd.backfill.ledger import whole_candles
from tardisd.errors import RequestError
from tardisd.market.series import DataType
from tardisd.market.time import MILLISECOND, SECOND
from tardisd.plugins.sessions import Notice
from tardisd.testing.engine import run_engine
from tardisd.testing.memory import MemoryStorage

FEW = settings(max_examples=20)


@dataclass
class Told:
    """What a follower was told in an epoch: ticks and gaps in order, and the snapshot."""

    items: list[tuple[Any, ...]] = field(default_factory=list)
    snapshot: list[dict[str, Any]] | None = None
    gaps: list[tuple[Any, ...]] = field(default_factory=list)


def gap_of(fields):
    return ("gap", fields["series"], fields["from"], fields["to"], fields["cause"])


def told(listener, epoch):
    found = Told()
    for heard in listener.heard:
        item = heard.item
        if isinstance(item, Notice):
            if item.fields.get("epoch") != epoch:
                continue
            if item.type == "gap":
                found.items.append((None, *gap_of(item.fields)))
            elif item.type == "snapshot":
                found.snapshot = json.loads(bytes(item.fields["data"]))
                found.gaps = [gap_of(gap) for gap in item.fields["gaps"]]
            continue
        if item.epoch != epoch:
            continue
        rows = [None] * len(item)
        release = item.release.tolist()
        for batch, seqs in item.batches():
            texts = [batch.fields[n].texts() for n in FIELDS if n in batch.fields]
            values = zip(*texts, strict=True)
            closed = getattr(batch.series, "closed", None)
            names = [name for name in FIELDS if name in batch.fields]
            if not texts:  # trades
                names = ["price", "amount"]
                values = zip(*(batch.fields[name].texts() for name in names), strict=True)
            for seq, ts, row in zip(seqs, batch.ts_event.tolist(), values, strict=True):
                at = seq - item.first_seq
                fields = {n: text for n, text in zip(names, row, strict=True) if text is not None}
                rows[at] = (release[at], "tick", batch.series.text, closed, ts, fields)
        found.items += rows
    return found


@st.composite
def plays(draw):
    case = draw(cases())
    derive = [case.series]
    if draw(st.booleans()):  # another one, of the same source
        interval = case.series.data_type.interval
        name = DataType.parse(f"candle_{interval.count * 2}{interval.unit}")
        if whole_candles(case.span, name.interval) is not None:
            derive.append(replace(case.series, data_type=name))
    return case, {
        "series": [case.source] if draw(st.booleans()) else [],
        "derive": tuple(derive),
        "forming": draw(st.booleans()),
        "publish_delay": draw(st.sampled_from([0, 0, 1, 700 * MILLISECOND, 90 * SECOND])),
    }


async def begin(engine, case: Case, options):
    """Store the case and create its session, or return None where there is nothing to play."""
    [batch] = case.batches([]) or [None]
    if batch is None:
        return None
    await engine.store(batch, case.coverage.union(batch.extent()))
    case.coverage = await engine.storage.coverage(case.source)
    await engine.storage.record_gaps(case.source, case.causes)
    case.causes = list(await engine.storage.gaps(case.source))
    options = dict(options)
    try:
        return await engine.create(options.pop("series"), case.span, speed="max", **options)
    except RequestError as error:
        if error.code in ("no_data", "bad_request") and "derive: " in error.message:
            return None
        raise


async def whole(engine, case, options):
    session = await begin(engine, case, options)
    if session is None:
        return None
    listener = engine.listen(session)
    session.begin()
    await listener.done.wait()
    assert listener.end["reason"] == "finished"
    return listener


@FEW
@given(plays())
def test_a_session_delivers_what_the_model_says(play):
    case, options = play
    delay = options["publish_delay"]

    async def main(engine):
        return await whole(engine, case, options)

    if (listener := run_engine(main, storage=SmallReads())) is None:
        return
    expected = derive(
        case.series, case.source, case.span, case.model_rows(), case.coverage, case.causes
    )
    items = told(listener, 1).items
    interval = case.series.data_type.interval
    ticks = [item for item in items if item[1] == "tick" and item[2] == case.series.text]
    closed = {at: values for _, _, _, finished, at, values in ticks if finished}
    assert closed.keys() == expected.closed.keys()
    for at, values in closed.items():
        assert [values.get(name) for name in FIELDS] == list(expected.closed[at])
    for release, _, _, finished, at, _ in ticks:
        close = interval.close(at) + delay
        assert release == close if finished else release < close
    forming = [(at, release - delay) for release, _, _, finished, at, _ in ticks if not finished]
    assert forming == (sorted(expected.forming) if options["forming"] else [])
    delivered = [item for item in items if item[1] == "tick" and item[2] == case.source.text]
    assert len(delivered) == (len(case.rows) if options["series"] else 0)
    # Whatever is told at one time, shorter candles come first, and trades last.
    releases = [item[0] for item in items if item[1] == "tick"]
    assert releases == sorted(releases)
    ranks = [
        (item[0], item[2] == case.source.text and case.source.data_type.interval is None)
        for item in items
        if item[1] == "tick"
    ]
    assert ranks == sorted(ranks)


@FEW
@given(plays(), st.integers(1, 50))
def test_the_hash_does_not_depend_on_how_it_is_read(play, rows):
    case, options = play
    ends = []
    for storage in (MemoryStorage(), SmallReads()):
        storage.rows = rows

        async def main(engine):
            return await whole(engine, case, options)

        if (listener := run_engine(main, storage=storage)) is None:
            return
        ends.append((listener.end, told(listener, 1).items))
    assert ends[0] == ends[1]


@FEW
@given(plays(), st.data())
def test_a_seek_is_as_if_one_had_played_up_to_there(play, data):
    case, options = play

    async def main(engine):
        session = await begin(engine, case, options)
        if session is None:
            return
        listener = engine.listen(session)
        session.begin()
        await listener.done.wait()
        reference = told(listener, 1)
        releases = sorted({item[0] for item in reference.items if item[0] is not None})
        near = [ts + n for ts in releases for n in (-1, 0, 1)] or [case.span.start]
        inside = st.sampled_from(near).map(lambda ts: min(max(ts, case.span.start), case.span.end))
        target = data.draw(inside | st.integers(case.span.start, case.span.end))
        again = dict(options)
        session = await engine.create(
            again.pop("series"), case.span, speed="max", start_paused=True, **again
        )
        other = engine.listen(session)
        session.begin()
        session.seek(target)
        session.resume()
        await other.done.wait()
        check_suffix(reference, told(other, 2), target, case, options)

    run_engine(main, storage=SmallReads())


def check_suffix(reference, found, target, case, options):
    """Check that an epoch is the rest of a whole one, and its snapshot what came before."""
    upto = 0
    for number, item in enumerate(reference.items):
        if item[0] is not None and item[0] < target:
            upto = number + 1
    # Marks just before the position have no release time here: they are in either part.
    while upto < len(reference.items) and reference.items[upto:] != found.items:
        assert reference.items[upto][0] is None
        upto += 1
    assert reference.items[upto:] == found.items
    state, gaps = {}, {}
    for item in reference.items[:upto]:
        if item[0] is None:
            gaps[item[2:]] = item[1:]
        else:
            state[item[2], item[3]] = item
    for series in options["derive"]:
        forming = state.get((series.text, False))
        close = series.data_type.interval.close
        if forming and close(forming[4]) + options["publish_delay"] < target:
            del state[series.text, False]  # of an interval that is over
    assert {(row_key(row), row["timestamp"]) for row in found.snapshot or []} == {
        ((text, whole), item[4] // MILLISECOND) for (text, whole), item in state.items()
    }
    open_gaps = [gap for gap in gaps.values() if gap[3] * MILLISECOND > target]
    assert sorted(gap[1:3] for gap in found.gaps if gap[3] * MILLISECOND > target) == sorted(
        gap[1:3] for gap in open_gaps
    )


def row_key(row):
    text = f"{row['exchange']}:{row['symbol']}@{row['channel']}"
    return (text, row.get("closed", True) if row.get("derived") else None)


@FEW
@given(plays(), st.data())
def test_steps_back_and_forth_are_the_same_ticks(play, data):
    case, options = play

    async def main(engine):
        session = await begin(engine, case, options)
        if session is None:
            return
        listener = engine.listen(session)
        session.begin()
        await listener.done.wait()
        reference = [item for item in told(listener, 1).items if item[1] == "tick"]
        again = dict(options)
        session = await engine.create(
            again.pop("series"), case.span, speed="max", start_paused=True, **again
        )
        other = engine.listen(session)
        session.begin()
        there = 0
        for count in data.draw(st.lists(st.integers(-9, 9), min_size=1, max_size=4)):
            notice = await session.step(count).wait()
            moved = max(-there, min(count, len(reference) - there))
            assert notice.fields["count"] == moved
            there += moved
            if session.has_ended:  # stepping over the last tick may do that
                return
        session.resume()
        await other.done.wait()
        last = told(other, session.epoch)
        rest = [item for item in last.items if item[1] == "tick"]
        assert rest == reference[len(reference) - len(rest) :]
        assert len(rest) >= len(reference) - there

    run_engine(main, storage=SmallReads())
