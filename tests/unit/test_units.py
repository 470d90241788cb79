"""What `shopfloor gc` knows, and who keeps it."""

from shopfloor.backup.places import Listed
from shopfloor.backup.units import mark, names_in, objects, units, with_content

STEP = f"steps/train/{'a' * 16}-{'b' * 8}"
RESULT = f"results/ab/{'c' * 64}.json"
SOURCE = f"features/toy/{'d' * 16}"
OBJECT = f"files/md5/ab/{'e' * 30}"


def test_files_of_one_directory_are_one_unit_as_old_as_its_newest_file():
    listing = {f"{STEP}/model": Listed(3, "", 10.0), f"{STEP}/deep/other": Listed(4, "", 30.0)}
    (unit,) = units({"artifacts": listing}).values()
    assert (unit.name, unit.files, unit.size_bytes, unit.changed_s) == (STEP, 2, 7, 30.0)


def test_only_known_names_in_their_own_place_are_units():
    listing = dict.fromkeys([STEP, RESULT, f"{SOURCE}/rows.parquet", "tune/toy/trial", OBJECT], Listed(1, "", 1.0))
    strange = [
        "predictions/toy/predictions/date=2026-11-21/1.parquet",
        "batch/toy/version=1/part",
        "features/toy/online.json",
        "results/latest/toy/train.json",
        "steps/train/notes.txt",
        "steps/.shopfloor-scratch-1/model",
        "tune/.shopfloor-scratch-1/trial",
        "mine/" + STEP,
    ]
    listing |= dict.fromkeys(strange, Listed(1, "", 1.0))
    assert set(units({"artifacts": listing})) == {STEP, RESULT, SOURCE, "tune/toy"}
    assert set(units({"data": listing})) == {OBJECT}


def test_a_file_whose_store_says_no_time_is_never_old():
    assert units({"artifacts": {RESULT: Listed(1, "")}})[RESULT].changed_s == float("inf")


def test_names_are_found_anywhere_in_a_text():
    text = f'{{"uri": "s3://bucket/prefix/{STEP}", "other": "file:///state/{SOURCE}/rows.parquet"}}\0{RESULT}'
    assert names_in(text) == {STEP, SOURCE, RESULT}


def test_a_name_is_found_below_a_directory_whose_own_name_looks_like_one():
    assert STEP in names_in(f"/data/tune/{STEP}")


def test_what_has_a_content_that_a_passport_names_is_found_under_any_name():
    assert with_content([STEP, SOURCE], ["a" * 64]) == {STEP}


def test_an_object_has_the_name_that_dvc_gives_it():
    assert set(objects(["ab" + "e" * 30])) == {OBJECT}


def test_the_first_owner_counts_and_what_has_none_is_free():
    owners = {"versions": {"a"}, "results": {"a", "b"}}
    assert mark(["a", "b", "c"], owners) == {"a": "versions", "b": "results", "c": ""}
