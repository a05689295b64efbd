"""Rows of points and their packed form."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from dse_monitor.runs.record import FIRST_COLUMNS, POINT_COLUMNS, SCHEMA
from dse_monitor.tb_plugin.points import decode_rows, join_shards, pack

pytestmark = pytest.mark.fast

WIDTH = len(POINT_COLUMNS)


def row(seq, **columns):
    values = {"schema": SCHEMA, "seq": seq, "status": 0, **columns}
    return np.array([values.get(name, np.nan) for name in POINT_COLUMNS])


def test_rows_of_another_kind_are_counted_and_left_out():
    good = row(7, epoch=1.0)
    bad = [
        good[: FIRST_COLUMNS - 1],
        good.astype(np.float32),
        good.reshape(1, -1),
        np.array([b"x"], dtype=object),
        None,
        row(np.nan),
        row(1.5),
        row(-3),
        row(2.0**53),
        row(np.inf),
        row(8, schema=SCHEMA + 1),
        row(8, schema=np.nan),
    ]
    rows, skipped = decode_rows([good, *bad])
    assert rows.tolist()[0][:4] == good.tolist()[:4]
    assert (len(rows), skipped) == (1, len(bad))


def test_rows_of_earlier_versions_lack_columns_and_are_used():
    rows, skipped = decode_rows([row(3, epoch=2.0)[:FIRST_COLUMNS]])
    assert (rows.shape, skipped) == ((1, WIDTH), 0)
    assert np.isnan(rows[0, FIRST_COLUMNS:]).all()
    assert rows[0, POINT_COLUMNS.index("epoch")] == 2.0


def test_columns_of_a_newer_minor_version_are_left_out():
    rows, skipped = decode_rows([np.append(row(3), [1.0, 2.0])])
    assert (rows.shape, skipped) == ((1, WIDTH), 0)


def test_rows_come_in_order_of_their_numbers_each_once():
    shard = SimpleNamespace
    points = join_shards(
        {
            "5": shard(rows=np.stack([row(5), row(9)]), skipped=0),
            "2": shard(rows=np.stack([row(2, epoch=1.0), row(5, epoch=4.0)]), skipped=3),
        }
    )
    assert points.table[:, 1].tolist() == [2, 5, 9]
    assert points.tags == ("2", "2", "5")  # of two rows with one number, the one read last
    assert points.skipped == 3


def test_no_shards_make_an_empty_table():
    points = join_shards({})
    assert points.table.shape == (0, WIDTH)
    assert points.version == "0-0-0"


def test_packed_columns_start_at_multiples_of_eight_bytes():
    table = np.array([[1.0, np.nan], [2.0, -np.inf], [3.0, 0.1]])
    for name in ("a", "ab", "abc", "abcdefgh"):
        body = pack({"columns": [name, "y"]}, table)
        (length,) = struct.unpack("<I", body[:4])
        assert (4 + length) % 8 == 0
        assert json.loads(body[4 : 4 + length])["rows"] == 3
        np.testing.assert_array_equal(np.frombuffer(body[4 + length :]).reshape(2, 3), table.T)
