import json
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_core_inspection import COUNT, episode, length_of, problems_of, write_store

import core.inspection.records
from core.inspection.inspection import inspect_store, to_json
from core.inspection.page import write_page
from core.inspection.records import clocks_of_store
from core.inspection.values import sense_values
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


def faster(values, table):
    return np.where(np.isin(table["episode_index"].to_numpy(), (1, 4)), values / 2, values)


def slower_and_with_a_gap(values, table):
    return later_from_frame_ten(np.where(table["episode_index"].to_numpy() == 5, values * 2, values), table)


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


def test_episodes_at_another_rate_are_told_apart_from_those_with_gaps(tmp_path):
    for name in ("fast", "slow"):
        write_store(tmp_path / name, [episode(n) for n in range(COUNT)])
    found = problems_of(foreign(tmp_path / "fast", times(faster)))
    assert {name: one.episodes for name, one in found.items() if one.level != "note"} == {
        "unspecified_action_space": (),
        "mixed_rates": (1, 4),
    }
    assert "The times of 2 of 6 episodes are not those of 10 frames a second" in found["mixed_rates"].what
    assert "but of 20 " in found["mixed_rates"].what
    found = problems_of(foreign(tmp_path / "slow", times(slower_and_with_a_gap)))
    assert (found["mixed_rates"].episodes, found["time_gaps"].episodes) == ((5,), (3,))


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
    facts = to_json(inspect_store(path, most_episodes=3))
    assert facts["copies_sought_in"] == {"by_frames": 3, "by_actions": 0}
    write_page(inspect_store(path, most_episodes=3), tmp_path / "page.html")
    sentence = "Copies of one recording were sought by the frames of 3 and by the actions of 0 of 7 episodes"
    assert sentence in (tmp_path / "page.html").read_text()


class Watched(Store):
    """Remembers how much of the proprioception was in use at once."""

    found, most = (), 0

    def proprioception(self, episode):
        # An array of its own, so that what is kept of it keeps all of it.
        values = np.array(super().proprioception(episode))
        self.found = (*self.found, weakref.ref(values))
        self.most = max(self.most, sum(one() is not None for one in self.found))
        return values


def test_of_each_episode_only_a_few_numbers_are_kept(tmp_path):
    watched = Watched.open(write_store(tmp_path / "store", [episode(n) for n in range(COUNT)]))
    assert len(sense_values(watched).first) == COUNT
    assert watched.most <= 2
