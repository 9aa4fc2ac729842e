"""Candles of Binance asked for side by side: full answers become one page, others are mended."""

from __future__ import annotations

import numpy as np
import pytest
from binance_rig import SPOT, asked, assert_same, candles, fetched, span, venue_of

import tardisd.testing.venues.faults as faults
from tardisd.errors import RequestError
from tardisd.testing.venues.faults import Misreport, Refuse

TRUTH = candles(f"{SPOT}@candle_1m", "03-05", "03-21")
WANTED = span("03-06", "03-15")
ASKED = {"series": f"{SPOT}@candle_1m", "wanted": WANTED, "archives": "never"}


async def test_full_answers_are_asked_for_side_by_side(tmp_path):
    venue = venue_of(TRUTH)
    pages = await fetched(venue, tmp_path, **ASKED)
    assert_same(pages, TRUTH, WANTED)
    assert [len(page.batch) for page in pages] == [1000, 8000, 3000, 960]
    assert len(asked(venue, "klines")) == 13


@pytest.mark.parametrize(
    "fault",
    [
        Misreport(match="klines", change=faults.missing, skip=4),
        Misreport(match="klines", change=faults.empty, skip=4),
        Misreport(match="klines", change=faults.duplicated, skip=4),
        Refuse(match="klines", status=500, skip=3, times=7),
    ],
)
async def test_what_goes_wrong_side_by_side_is_mended(tmp_path, fault):
    truth = TRUTH[np.r_[:6000, 6005 : len(TRUTH)]]
    pages = await fetched(venue_of(truth, faults=[fault]), tmp_path, **ASKED)
    assert_same(pages, truth, WANTED)


async def test_a_final_refusal_of_one_answer_ends_the_fetch(tmp_path):
    fault = Refuse(match="klines", status=400, body=b'{"code":-1100,"msg":"no"}', skip=4)
    venue = venue_of(TRUTH, faults=[fault])
    with pytest.raises(RequestError, match=r"refused .HTTP 400, -1100: no"):
        await fetched(venue, tmp_path, **ASKED)
    assert len(asked(venue, "klines")) == 9, "one alone, then eight side by side, and no more"


async def test_what_came_behind_a_bad_answer_is_not_asked_for_again(tmp_path):
    fault = Misreport(match="klines", change=faults.missing, skip=4)
    venue = venue_of(TRUTH, faults=[fault])
    assert_same(await fetched(venue, tmp_path, **ASKED), TRUTH, WANTED)
    questions = asked(venue, "klines")
    assert len(questions) - len(set(questions)) == 1
