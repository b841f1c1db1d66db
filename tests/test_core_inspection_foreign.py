import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_core_inspection import COUNT, episode, length_of, problems_of, write_store

import core.inspection.records
from core.inspection.records import clocks_of_store
from core.run import write_json
from core.store import Store
from core.store_layout import OURS


def foreign(path, change=None, drop=()):
    """Turn a store into what another program would have written: without anything of this project."""
    info = json.loads((path / "meta/info.json").read_text())
    info.pop(OURS)
    for name in ("hashes", "skipped", "splits"):
        (path / f"meta/{name}.json").unlink()
    for file in (path / "meta/episodes").rglob("*.parquet"):
        table = pq.read_table(file)
        ours = [n for n in table.column_names if n.startswith("signature/")]
        pq.write_table(
            table.drop_columns([*ours, "episode_id", "task", "extra", "views", "is_labelled", "action_hash"]), file
        )
    for file in (path / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table((change or (lambda t: t))(table.drop_columns(list(drop))), file)
    for name in drop:
        info["features"].pop(name)
    info["splits"] = {"train": f"0:{COUNT - 1}", "validation": f"{COUNT - 1}:{info['total_episodes']}"}
    write_json(path / "meta/info.json", info)
    return path


def times(change):
    def changed(table):
        values = table["timestamp"].to_numpy().copy()
        place = table.schema.get_field_index("timestamp")
        return table.set_column(place, "timestamp", pa.array(change(values, table).astype(np.float32)))

    return changed


def later_from_frame_ten(values, table):
    late = (table["episode_index"].to_numpy() == 3) & (table["frame_index"].to_numpy() >= 10)
    return values + 0.7 * late


def with_nan(table):
    actions = np.stack(table["action"].to_numpy())
    actions[5, 2] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.reshape(-1)), 7)
    return table.set_column(table.schema.get_field_index("action"), "action", column)


def test_a_data_set_of_another_program_is_judged_by_its_frames_and_times(tmp_path):
    for name in ("plain", "gaps", "slow", "nan"):
        write_store(tmp_path / name, [episode(n) for n in range(COUNT)])
    usual = ["unspecified_action_space"]
    assert list(problems_of(foreign(tmp_path / "plain"))) == usual
    found = problems_of(foreign(tmp_path / "gaps", times(later_from_frame_ten)))
    assert (list(found), found["time_gaps"].episodes) == ([*usual, "time_gaps"], (3,))
    found = problems_of(foreign(tmp_path / "slow", times(lambda values, _: values * 2)))
    assert list(found) == ["wrong_rate", *usual]
    assert "10 frames a second, the times of its frames 5 " in found["wrong_rate"].what
    found = problems_of(foreign(tmp_path / "nan", with_nan))
    assert list(found) == ["unreadable_actions", *usual]
    assert (found["unreadable_actions"].level, found["unreadable_actions"].episodes) == ("fatal", (0,))


def test_times_are_read_a_few_at_a_time_and_may_start_anywhere(tmp_path, monkeypatch):
    path = foreign(
        write_store(tmp_path / "store", [episode(n) for n in range(COUNT)]),
        times(lambda values, table: later_from_frame_ten(values, table) + 500),
    )
    starts = np.cumsum([0, *map(length_of, range(COUNT))])
    for rows in (10**6, 7, 1, int(starts[3]) + 10):
        monkeypatch.setattr(core.inspection.records, "BATCH_ROWS", rows)
        clocks = clocks_of_store(Store.open(path)).found
        assert [clock.gaps for clock in clocks.values()] == [0, 0, 0, 1, 0, 0]
        assert [clock.steps for clock in clocks.values()] == [length_of(n) - 1 for n in range(COUNT)]
        assert clocks[0].seconds == pytest.approx((length_of(0) - 1) / 10, abs=1e-3)


def test_copies_in_a_data_set_of_another_program_are_found_by_their_frames_alone(tmp_path):
    copies = [episode(n) for n in range(COUNT)] + [episode(1, episode_id="copy")]
    path = foreign(write_store(tmp_path / "store", copies), drop=("action", "observation.state"))
    found = problems_of(path)
    assert set(found) == {"duplicates", "held_out_is_trained_on", "no_actions"}
    assert found["duplicates"].episodes == (1, COUNT)
