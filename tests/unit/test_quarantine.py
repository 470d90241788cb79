"""What was moved into a quarantine, and comes back from it."""

import pytest
from shopfloor.backup import quarantine
from shopfloor.backup.places import Place
from shopfloor.backup.units import units
from shopfloor.errors import NotFoundError
from shopfloor.settings import Settings

STEP, OBJECT = f"steps/train/{'a' * 16}-{'b' * 8}", f"files/md5/ab/{'e' * 30}"


@pytest.fixture
def places(tmp_path):
    settings = Settings(project_root=tmp_path, state_dir=tmp_path / "state")
    for name in (f"artifacts/{STEP}/model", f"data/{OBJECT}"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    return {name: Place(settings, str(tmp_path / name)) for name in ("artifacts", "data")}


def moved(places, drafts):
    free = units({name: place.files() for name, place in places.items()})
    return quarantine.move(places, list(free.values()), drafts)


def test_what_came_back_is_all_that_there_is(places, tmp_path):
    before = {name: set(place.files()) for name, place in places.items()}
    assert quarantine.undo(places, moved(places, tmp_path).id) == []
    assert {name: set(place.files()) for name, place in places.items()} == before


def test_what_is_in_a_place_that_the_stack_no_longer_has_stays_and_comes_back_later(places, tmp_path):
    one = moved(places, tmp_path)
    assert quarantine.undo({"artifacts": places["artifacts"]}, one.id) == [OBJECT]
    assert quarantine.undo(places, one.id) == []
    assert set(places["data"].files()) == {OBJECT}


def test_a_note_that_names_something_else_than_is_ever_moved_is_none(places, tmp_path):
    one = moved(places, tmp_path)
    note = tmp_path / "artifacts" / "quarantine" / f"{one.id}.json"
    note.write_text(note.read_text().replace(OBJECT, "../../.ssh/id_rsa"))
    with pytest.raises(NotFoundError, match="no quarantine"):
        quarantine.undo(places, one.id)
