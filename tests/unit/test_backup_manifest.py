"""What a backup is, and what of a place it has already."""

import datetime as dt
import os

import pytest
from pydantic import ValidationError
from shopfloor.backup import sealing
from shopfloor.backup.databases import Dump, copied_rows
from shopfloor.backup.manifest import File, Manifest, changes, created_of, identify, parse
from shopfloor.backup.places import Listed, Place
from shopfloor.backup.sources import location, require_complete
from shopfloor.errors import AccessError, NotFoundError, ShopfloorError, UsageError
from shopfloor.settings import Settings

AT = dt.datetime(2026, 11, 26, 7, 30, 1, tzinfo=dt.UTC)
PLACES = {"artifacts": "/state/artifacts", "mlflow": "s3://models/artifacts"}


def file(name, place="mlflow", stamp="1", size=3):
    return File(place=place, name=name, sha256="0" * 64, size_bytes=size, stamp=stamp)


def manifest(*files):
    return Manifest(created=AT, profile="embedded", places=PLACES, files=list(files), counts={"runs": 1})


def test_only_a_file_whose_size_and_stamp_are_as_before_is_not_read_again():
    before = [file("same"), file("longer"), file("touched"), file("gone"), file("elsewhere", place="artifacts")]
    listing = {
        "same": Listed(3, "1"),
        "longer": Listed(4, "1"),
        "touched": Listed(3, "2"),
        "fresh": Listed(3, "1"),
        "elsewhere": Listed(3, "1"),
    }

    difference = changes("mlflow", listing, before)

    assert [item.name for item in difference.known] == ["same"]
    assert difference.new == ["elsewhere", "fresh", "longer", "touched"]


def test_a_file_without_a_stamp_is_always_read_again():
    assert changes("mlflow", {"a": Listed(3, "")}, [file("a", stamp="")]).new == ["a"]


def test_an_id_names_the_moment_and_the_bytes():
    content = manifest(file("a")).model_dump_json().encode()
    backup_id = identify(AT, content)

    assert created_of(backup_id) == AT
    assert parse(backup_id, content) == manifest(file("a"))
    with pytest.raises(ShopfloorError, match=f"manifest of backup {backup_id} was altered"):
        parse(backup_id, content.replace(b"embedded", b"embeddee"))


def test_a_manifest_of_a_later_version_is_refused_in_one_line():
    content = manifest().model_dump_json().replace('"format":1', '"format":2').encode()
    with pytest.raises(UsageError, match="cannot be read: format"):
        parse(identify(AT, content), content)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", "", "nul\0"])
def test_a_name_that_leads_out_of_its_place_is_refused(name):
    with pytest.raises(ValidationError):
        file(name)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("mlflow-artifacts:/1/models/m-1/artifacts", ("mlflow", "1/models/m-1/artifacts/")),
        ("mlflow-artifacts://host:5000/1/models/m-1/artifacts/", ("mlflow", "1/models/m-1/artifacts/")),
        ("s3://models/artifacts/1/m", ("mlflow", "1/m/")),
        ("/state/artifacts/steps/m", ("artifacts", "steps/m/")),
        ("file:///state/artifacts/steps/m", ("artifacts", "steps/m/")),
        ("/state/artifacts-of-others/m", None),
        ("gs://elsewhere/m", None),
    ],
)
def test_the_files_of_a_version_are_found_by_mlflows_address(address, where):
    assert location(address, PLACES) == where


def test_a_backup_that_lacks_the_files_of_a_version_is_refused_and_what_is_elsewhere_is_said():
    versions = {"flights/1": "mlflow-artifacts:/1/m-1", "flights/2": "gs://elsewhere/m"}

    assert require_complete(versions, manifest(file("1/m-1/MLmodel"))) == [
        "the files of flights/2, which are at gs://elsewhere/m"
    ]
    with pytest.raises(ShopfloorError, match="flights/1 names mlflow-artifacts:/1/m-1, and no file is there"):
        require_complete(versions, manifest(file("1/m-10/MLmodel")))


def test_a_short_key_or_a_missing_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(sealing.SEALING_KEY, raising=False)
    short = tmp_path / "key"
    short.write_text("short\n")

    assert sealing.read_key(None) is None
    with pytest.raises(UsageError, match="has 5 characters"):
        sealing.read_key(short)
    with pytest.raises(UsageError, match="cannot be read"):
        sealing.read_key(tmp_path / "none")


def test_rows_are_read_from_what_pg_restore_writes():
    script = (
        "SET x = y;\nCOPY public.model_versions (name, version, source, current_stage) FROM stdin;\n"
        "flights\t1\tmodels:/m-1\tNone\nflights\t2\t\\N\ta\\\\b\\tc\n\\.\n\nCOPY public.other (a) FROM stdin;\n1\n\\.\n"
    )

    assert copied_rows(script, ("version", "source", "current_stage")) == [
        {"version": "1", "source": "models:/m-1", "current_stage": "None"},
        {"version": "2", "source": None, "current_stage": "a\\b\tc"},
    ]
    assert copied_rows("", ("version",)) == []
    with pytest.raises(ShopfloorError, match="lacks the columns storage_location"):
        copied_rows(script, ("version", "storage_location"))


def test_a_directory_that_may_not_be_read_is_no_empty_one(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    if os.access(tmp_path / "closed", os.R_OK):
        pytest.skip("this account may read everything")
    place = Place(Settings(project_root=tmp_path), str(tmp_path))
    with pytest.raises(AccessError, match="closed cannot be read: Permission denied"):
        place.files()


def test_a_directory_that_is_not_there_is_an_empty_one(tmp_path):
    assert Place(Settings(project_root=tmp_path), str(tmp_path / "none")).files() == {}


def test_a_store_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made: Not a directory"):
        Place(Settings(project_root=tmp_path), str(tmp_path / "file" / "store")).drafts  # noqa: B018


def test_the_rows_of_a_dump_stand_beside_it_and_what_lacks_is_named(tmp_path):
    dump = Dump("mlflow.dump", tmp_path)
    with pytest.raises(NotFoundError, match="pg_dump"):
        dump.copy(tmp_path / "copy")
    (tmp_path / "mlflow.dump").write_text("a dump")
    (tmp_path / "mlflow.runs.sql").write_text("COPY public.runs (run_uuid) FROM stdin;\nabc\n\\.\n")

    dump.copy(tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "a dump"
    assert dump.rows(tmp_path / "copy", "runs", ("run_uuid",)) == [{"run_uuid": "abc"}]
    assert dump.holds().endswith("mlflow.dump")
    with pytest.raises(NotFoundError, match="--table=model_versions"):
        dump.rows(tmp_path / "copy", "model_versions", ("name",))
