"""The labels of a folder: versions, who saved at once, what is known of each, and what people put there."""

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sent_labels import AFFINE, KNOWN, current, send, voxels

from polycl.errors import InputError, NotFoundError
from polycl.labels.library import Library, final_labels
from polycl.labels.record import ModelVersion, read_record
from polycl.labels.replies import Reply
from polycl.labels.saving import Saved, Sent, save
from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.unit


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_saved_label(store: Path) -> None:
    saved = send(store, voxels(1, 2) + voxels(4, value=2), info={"label_info": [{"name": "Spleen"}, {"name": "cyst"}]})
    record = saved.record
    assert (record.version, record.parent, record.annotator, record.source) == (1, None, "ann", "client")
    assert record.labels == {"spleen": 2, "cyst": 3}
    assert record.unknown == ("cyst",)
    assert record.known == {"spleen": ((1, 3),), "cyst": ((4, 5),)}
    assert datetime.now(UTC) - record.saved < timedelta(minutes=1)
    assert np.array_equal(current(store), voxels(1, 2, value=2) + voxels(4, value=3))
    assert read_record(store / "labels" / "final" / "a.record.json") == record
    (found,) = final_labels(store)
    assert (found.image_id, found.image, found.record) == ("a", store / "a.nii.gz", record)
    assert found.label == store / "label_versions" / "final" / "a" / "000001" / "label.nii.gz"
    assert any("2 of 6 slices" in note for note in saved.notes)
    assert any("cyst" in note for note in saved.notes)


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": [9, 8, -4]},
        {"shape": [9, 8, 10**12]},
        {"painted": {"spleen": [[-3, 2]]}},
        {"known": {"spleen": [[-3, 2]]}},
        {"voxels": {"spleen": -1}},
        {"version": 0},
        {"known": None},
    ],
)
def test_a_record_of_what_cannot_be_is_damaged(damage: dict[str, object], store: Path, tmp_path: Path) -> None:
    fields = json.loads(send(store, voxels(1, 2)).record.model_dump_json())
    file = tmp_path / "a.record.json"
    file.write_text(json.dumps(fields))
    assert read_record(file).painted == {"liver": ((1, 3),)}
    file.write_text(json.dumps(fields | damage))
    with pytest.raises(InputError, match=r"a\.record\.json is no record of a label, or a damaged one"):
        read_record(file)


def test_older_versions_are_kept_and_come_back(store: Path) -> None:
    for z in range(4):
        send(store, voxels(z), suffix=".nrrd" if z % 2 else ".nii.gz")
    library = Library(store)
    assert [record.version for record in library.versions("a")] == [1, 2, 3, 4]
    assert [path.name for path in sorted((store / "labels" / "final").iterdir())] == ["a.nrrd", "a.record.json"]
    restored = library.restore("a", 2)
    assert (restored.version, restored.parent, restored.source) == (5, 4, "restored")
    assert np.array_equal(current(store), voxels(1))
    assert restored.known == {"liver": ((1, 2),)}
    with pytest.raises(NotFoundError, match="there are: 1, 2, 3, 4, 5"):
        library.restore("a", 9)


def test_as_many_versions_as_set_and_the_last_of_everyone(store: Path) -> None:
    send(store, voxels(0), who="bea", keep=3)
    for z in range(5):
        send(store, voxels(z), keep=3)
    assert [record.version for record in Library(store).versions("a")] == [1, 4, 5, 6]


def test_two_annotators_at_once(store: Path) -> None:
    start = threading.Barrier(6)
    results: list[Saved] = []

    def work(number: int) -> None:
        start.wait()
        results.append(send(store, voxels(number), who=f"user-{number}", keep=2))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = Library(store).versions("a")
    assert sorted(record.annotator for record in versions) == [f"user-{number}" for number in range(6)]
    assert [record.version for record in versions] == list(range(1, 7))
    last = max((saved.record for saved in results), key=lambda record: record.version)
    assert Library(store).record("a") == last
    assert np.array_equal(current(store), voxels(int(last.annotator[-1])))
    told = next(saved for saved in results if saved.record.version == 6)
    assert any("it is kept" in note for note in told.notes)


def test_an_empty_label_is_refused_unless_it_is_meant(store: Path) -> None:
    send(store, voxels(1))
    before = files(store)
    with pytest.raises(InputError, match="complete"):
        send(store, voxels())
    assert files(store) == before
    record = send(store, voxels(), info={"label_info": [{"name": "liver"}], "complete": True}).record
    assert record.known == {"liver": "all"}
    assert record.voxels == {"liver": 0}
    info = {"label_info": [{"name": "liver"}, {"name": "complete"}]}
    assert send(store, voxels(), info=info).record.known == {"liver": "all"}


def test_marked_complete_afterwards(store: Path) -> None:
    send(store, voxels(1) + voxels(3, value=2))
    library = Library(store)
    record = library.mark_complete("a", "final", ("liver",), "bea")
    assert (record.version, record.annotator) == (2, "bea")
    assert record.known == {"liver": "all", "spleen": ((3, 4),)}
    assert library.mark_complete("a", "final", ()).known == {"liver": ((1, 2),), "spleen": ((3, 4),)}
    with pytest.raises(NotFoundError, match="aorta"):
        library.mark_complete("a", "final", ("aorta",))
    with pytest.raises(NotFoundError, match="no such label"):
        library.mark_complete("b.1", "final", ())


def test_a_cropped_segmentation_is_put_back_and_what_was_sent_is_kept(store: Path) -> None:
    whole = voxels(2, 3)
    whole[0, 0, 2] = 5
    record = send(store, whole, suffix=".seg.nrrd", info={"label_info": [{"name": "other"}]}).record
    assert record.labels == {"liver": 1, "cyst": 3}
    assert record.file == "a.nrrd"
    assert current(store)[0, 0, 2] == 3
    assert (store / "label_versions" / "final" / "a" / "000001" / "sent.seg.nrrd").is_file()


def test_how_long_it_took(store: Path) -> None:
    now = datetime.now(UTC)
    opened = [now - timedelta(days=1), now - timedelta(minutes=5)]
    assert send(store, voxels(1), opened=opened).record.seconds == pytest.approx(300, abs=20)
    assert send(store, voxels(2), opened=opened).record.seconds is None  # opened before the last save
    assert send(store, voxels(2), who="bea", opened=opened).record.seconds == pytest.approx(300, abs=20)
    assert send(store, voxels(1), info={"seconds": 12}, opened=opened).record.seconds == 12
    for wrong in (-1, "7", True, float("nan")):
        with pytest.raises(InputError, match="seconds"):
            send(store, voxels(1), info={"seconds": wrong})


def test_which_model_it_comes_from(store: Path) -> None:
    model = ModelVersion(name="tiny", sha256="12")
    flat = np.flatnonzero(Volume(voxels(1, 2, 3), AFFINE).canonical().voxels)
    reply = Reply(model=model, made=datetime.now(UTC), samples={"liver": tuple(map(int, flat))})
    record = send(store, voxels(1, 2), replies=[reply]).record
    assert (record.model, record.descends, record.known) == (model, ("liver",), {"liver": "all"})
    record = send(store, voxels(1), replies=[reply]).record
    assert (record.model, record.descends, record.known) == (None, (), {"liver": ((1, 2),)})


def test_a_removed_label_comes_back(store: Path) -> None:
    send(store, voxels(1), suffix=".nrrd")
    library = Library(store)
    library.remove("a", "final")
    assert library.current("a") is None
    assert list((store / "labels" / "final").iterdir()) == []
    assert final_labels(store) == []
    library.restore("a", 1)
    assert np.array_equal(current(store), voxels(1))
    assert library.versions("a")[-1].version == 2


def test_a_label_that_a_person_put_there(store: Path) -> None:
    folder = store / "labels" / "final"
    folder.mkdir(parents=True)
    write_volume(Volume(voxels(1) + voxels(3, value=7), AFFINE), folder / "b.1.nii.gz")
    (found,) = final_labels(store, KNOWN)
    assert found.record.source == "file"
    assert found.record.labels == {"liver": 1, "label_7": 7}
    assert found.record.known == {"liver": ((1, 2),), "label_7": ((3, 4),)}
    assert final_labels(store, {}) == [found]
    write_volume(Volume(voxels(5), AFFINE), folder / "b.1.nii.gz")  # and changed later
    (changed,) = final_labels(store)
    assert (changed.record.version, changed.record.known) == (2, {"liver": ((5, 6),)})
    assert [record.version for record in Library(store).versions("b.1")] == [1, 2]


def test_a_label_that_a_person_changed_is_not_lost_by_a_save(store: Path) -> None:
    send(store, voxels(1))
    write_volume(Volume(voxels(4), AFFINE), store / "labels" / "final" / "a.nii.gz")
    assert send(store, voxels(2)).record.parent == 2
    assert [record.source for record in Library(store).versions("a")] == ["client", "file", "client"]
    Library(store).restore("a", 2)
    assert np.array_equal(current(store), voxels(4))
    (store / "labels" / "final" / "a.nii.gz").write_bytes(b"no label")
    Library(store).remove("a", "final")
    kept = store / "label_versions" / "final" / "a" / "000005" / "label.nii.gz"
    assert kept.read_bytes() == b"no label"


def test_what_monai_label_noted_names_the_values(store: Path) -> None:
    folder = store / "labels" / "final"
    folder.mkdir(parents=True)
    write_volume(Volume(voxels(1, value=2), AFFINE), folder / "a.nii.gz")
    info = {"label_info": [{"name": "left kidney", "idx": 7}, {"name": "spleen"}]}
    index = {"objects": {"a": {"labels": {"final": {"info": info}}}}}
    (store / "datastore_v2.json").write_text(json.dumps(index))
    assert final_labels(store)[0].record.labels == {"spleen": 2}


def test_what_is_no_label_is_left_out(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = store / "labels" / "final"
    folder.mkdir(parents=True)
    (folder / "a.nii.gz").write_bytes(b"no label")
    write_volume(Volume(np.ones((3, 3, 3), np.uint8), AFFINE), folder / "b.1.nii.gz")
    write_volume(Volume(voxels(1), AFFINE), folder / "gone.nii.gz")
    assert final_labels(store) == []
    assert caplog.text.count("left out") == 2
    assert Library(store).versions("a") == []


def test_what_a_model_saved_is_no_label_of_a_person(store: Path) -> None:
    path = store.parent / "m.nii.gz"
    write_volume(Volume(voxels(), AFFINE), path)
    info = {"params": {"label_names": {"liver": 1}, "model": {"name": "tiny", "sha256": "12"}}}
    sent = Sent.read(path, info, source="model")
    saved = save(Library(store), "a", "final", sent, read_volume(store / "a.nii.gz"))
    assert saved.record.model == ModelVersion(name="tiny", sha256="12")
    assert final_labels(store) == []
