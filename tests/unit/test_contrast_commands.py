"""`polycl pretrain` and what `polycl finetune` makes of its encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from polycl import checkpoints, devices
from polycl.checkpoints import Header, NetworkConfig, Preprocessing
from polycl.cli import app
from polycl.cli.pretrain import command_line
from polycl.dataset import LabelledSlice, Target, find_cases, labelled_slices
from polycl.errors import InputError, ModelError, PolyclError
from polycl.segmenter.augment import Augmentation
from polycl.segmenter.budget import draw_scans, draw_slices
from polycl.segmenter.network import SegmentationNetwork
from polycl.segmenter.training import Report, Schedule, TrainingData, finetune
from polycl.segmenter.transfer import read_encoder, read_segmenter, start_from
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.unit

SHAPE = (40, 40, 6)
TINY = NetworkConfig(features=(4, 4, 8, 8, 8, 4))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients with other stripes each, and the organ in the upper half of three of them."""
    folder = tmp_path_factory.mktemp("dataset")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    for number, name in enumerate("abcd"):
        hu = np.full(SHAPE, 40, dtype=np.int16)
        hu += (80 * np.sin(np.arange(SHAPE[0]) * (number + 1) * 0.5)).astype(np.int16)[:, None, None]
        ids = np.zeros(SHAPE, dtype=np.uint8)
        if name != "d":
            hu[8:20, 8:20, 3:], ids[8:20, 8:20, 3:] = 230, 7
        write_volume(Volume(hu, affine), folder / "images" / f"{name}.nii.gz")
        write_volume(Volume(ids, affine), folder / "labels" / f"{name}.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def small_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands' state in a folder of the test, and a peak that takes no second to measure."""
    monkeypatch.setenv("POLYCL_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(devices, "matrix_product_peak", lambda _: 1e12)


def polycl(*arguments: object) -> Result:
    fixed = ["--device", "cpu", "--precision", "fp32", "--size", "32", "--spacing", "3"]
    return CliRunner().invoke(app, [str(one) for one in (*arguments, *fixed)])


def refusal(*arguments: object) -> str:
    result = polycl(*arguments)
    assert isinstance(result.exception, PolyclError), result.output
    return str(result.exception)


@pytest.mark.slow
def test_an_encoder_goes_from_pretrain_to_a_segmenter(dataset: Path, tmp_path: Path) -> None:
    encoder, segmenter = tmp_path / "e.safetensors", tmp_path / "m.safetensors"
    done = polycl(
        "pretrain", dataset, "--strategy", "mixed", "--target", "organ=7", "-o", encoder,
        "--steps", 3, "--batch", 4, "--negatives", "batch", "--norm", "instance", "--pool", "max",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "of this machine's peak" in done.output
    header, weights = checkpoints.load(encoder)
    assert header.provenance.data == ("a", "b", "c", "d")
    assert str(tmp_path) not in header.model_dump_json()
    frozen = polycl(
        "finetune", dataset, "--target", "organ=7", "--encoder", encoder, "-o", segmenter,
        "--slices", 4, "--steps", 2, "--freeze", 2, "--loss", "dice", "--batch", 2,
    )  # fmt: skip
    assert frozen.exit_code == 0, frozen.output
    made, learnt = checkpoints.load(segmenter)
    assert made.network == header.network.model_copy(update={"classes": 2})
    assert made.provenance.parent == "e.safetensors"
    assert all(torch.equal(learnt[f"encoder.{name}"], weights[name]) for name in weights)


def test_a_scan_that_cannot_be_used_is_named_and_left_out(dataset: Path, tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for file in (dataset / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    (tmp_path / "images" / "e.nii.gz").write_bytes(b"no image")
    (tmp_path / "labels" / "b.nii.gz").unlink()
    options = ("--strategy", "organ", "--target", "organ=7", "-o", tmp_path / "e.safetensors", "--steps", 1)
    done = polycl("pretrain", tmp_path, *options, "--batch", 2)
    assert done.exit_code == 0, done.output
    assert "2 scans were left out" in done.output
    assert checkpoints.load(tmp_path / "e.safetensors")[0].provenance.data == ("a", "c", "d")
    assert "e.nii.gz" in refusal("pretrain", tmp_path, *options, "--strict")


@pytest.mark.slow
def test_presence_may_come_from_a_table(dataset: Path, tmp_path: Path) -> None:
    table = tmp_path / "presence.csv"
    table.write_text("scan,first,last\na,2,4\nb,0,3\n")
    output = tmp_path / "e.safetensors"
    arguments = ("--strategy", "organ", "--presence", table, "--steps", 1, "--batch", 2, "-o", output)
    done = polycl("pretrain", dataset, *arguments, "--mlflow", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "mlflow.db").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "organ"], "--target NAME=ID"),
        (["--strategy", "organ", "--target", "organ=3"], "ids in them are 7"),
        (["--strategy", "organ", "--target", "organ=7", "--train", "d"], "no label holds"),
        (["--strategy", "scan", "--train", "a"], "one scan"),
        (["--strategy", "scan", "--train", "x*"], r"none of the 4 scans .* matches x\*"),
    ],
)
def test_what_cannot_serve_a_strategy_says_so(options: list[str], message: str, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(PolyclError, match=message):
        raise_refusal(polycl("pretrain", dataset, *options, "-o", tmp_path / "e.safetensors", "--steps", 1))


def raise_refusal(result: Result) -> None:
    if result.exception is not None:
        raise result.exception


def test_an_output_that_cannot_be_written_is_told_before_the_work(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "e.safetensors"
    assert "cannot be written" in refusal("pretrain", dataset, "--strategy", "scan", "-o", output)
    assert "must end in .safetensors" in refusal("pretrain", dataset, "--strategy", "scan", "-o", tmp_path / "e.pt")


def test_a_command_is_published_without_this_machines_folders() -> None:
    given = ["pretrain", "/home/me/ct", "--cache=/tmp/slices", "--target", "liver=1,2", "-o", "out/e.safetensors"]
    assert command_line(given) == "polycl pretrain ct --cache=slices --target liver=1,2 -o out/e.safetensors"


@pytest.fixture(scope="module")
def slices(dataset: Path) -> list[LabelledSlice]:
    return list(labelled_slices(find_cases(dataset), [Target("organ", (7,))]))


def keys(slices: list[LabelledSlice]) -> list[tuple[str, int]]:
    return [(one.case, one.index) for one in slices]


def test_few_slices_are_drawn_from_those_with_a_target(slices: list[LabelledSlice]) -> None:
    few, more, other = draw_slices(slices, 3, 0), draw_slices(slices, 6, 0), draw_slices(slices, 3, 1)
    assert keys(more)[:3] == keys(few) != keys(other)
    assert all(one.classes.any() for one in more)
    assert len(set(keys(draw_slices(slices, 9, 0)))) == 9
    with pytest.raises(InputError, match="10 labelled slices were asked for, and 9 hold a target"):
        draw_slices(slices, 10, 0)


def test_few_scans_are_drawn_whole_from_those_with_a_target(slices: list[LabelledSlice]) -> None:
    drawn = {seed: {one.case for one in draw_scans(slices, 1, seed)} for seed in range(20)}
    assert set.union(*drawn.values()) == {"a", "b", "c"}
    assert len(draw_scans(slices, 2, 0)) == 2 * SHAPE[2]
    with pytest.raises(InputError, match="4 labelled scans were asked for, and 3 hold a target"):
        draw_scans(slices, 4, 0)


@pytest.mark.parametrize("loss", ["dice", "dice-ce"])
def test_a_frozen_encoder_keeps_its_weights_until_it_is_freed(
    loss: str, slices: list[LabelledSlice], tmp_path: Path
) -> None:
    weights = SegmentationNetwork(TINY).encoder.state_dict()
    for freeze, kept in ((2, True), (1, False)):
        run(tmp_path / "m.safetensors", slices, weights, Schedule(steps=2, batch=2, freeze=freeze, loss=loss))  # type: ignore[arg-type]
        learnt = checkpoints.load(tmp_path / "m.safetensors")[1]
        assert all(torch.equal(learnt[f"encoder.{name}"], weights[name]) for name in weights) == kept


def run(
    output: Path,
    slices: list[LabelledSlice],
    encoder: dict[str, torch.Tensor],
    schedule: Schedule,
    network: NetworkConfig = TINY,
) -> None:
    header = Header(network=network, preprocessing=Preprocessing(size=32, spacing=3.0), labels={"organ": 1})
    reports: list[Report] = []
    finetune(
        header,
        TrainingData(slices, [], []),
        output,
        schedule=schedule,
        augmentation=Augmentation(),
        encoder=encoder,
        where=devices.choose("cpu", "fp32"),
        report=reports.append,
    )


@pytest.mark.parametrize(
    "other", [{"norm": "instance"}, {"architecture": "resnet18"}, {"features": (4, 4, 8, 8, 16, 4)}]
)
def test_an_encoder_of_another_architecture_is_refused(other: dict[str, object], tmp_path: Path) -> None:
    weights = SegmentationNetwork(TINY.model_copy(update=other)).encoder.state_dict()
    with pytest.raises(ModelError, match="another architecture, width or norm"):
        start_from(SegmentationNetwork(TINY), weights)
    checkpoints.save(tmp_path / "e.safetensors", weights, Header(kind="encoder", network=TINY))
    with pytest.raises(ModelError, match=r"e\.safetensors do not fit the encoder that its header describes"):
        read_encoder(tmp_path / "e.safetensors")


def test_an_encoder_is_taken_out_of_a_segmenter(tmp_path: Path) -> None:
    network = SegmentationNetwork(TINY)
    checkpoints.save(tmp_path / "m.safetensors", network.state_dict(), Header(network=TINY))
    header, weights = read_encoder(tmp_path / "m.safetensors")
    assert header.network == TINY
    assert all(torch.equal(weights[name], one) for name, one in network.encoder.state_dict().items())


def test_a_segmenter_that_is_none_or_does_not_fit_its_header_is_refused(tmp_path: Path) -> None:
    network, path = SegmentationNetwork(TINY), tmp_path / "m.safetensors"
    checkpoints.save(path, network.encoder.state_dict(), Header(kind="encoder", network=TINY))
    with pytest.raises(ModelError, match=r"m\.safetensors holds an encoder, no segmenter; give it as --encoder"):
        read_segmenter(path)
    checkpoints.save(path, network.state_dict(), Header(network=TINY.model_copy(update={"classes": TINY.classes + 1})))
    with pytest.raises(ModelError, match=r"m\.safetensors do not fit the network that its header describes"):
        read_segmenter(path)


def test_a_norm_that_the_encoder_has_not_is_refused(dataset: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "e.safetensors"
    checkpoints.save(encoder, SegmentationNetwork(TINY).encoder.state_dict(), Header(kind="encoder", network=TINY))
    message = refusal(
        "finetune", dataset, "--target", "organ=7", "--encoder", encoder, "-o", tmp_path / "m.safetensors",
        "--norm", "instance",
    )  # fmt: skip
    assert message == "e.safetensors has batch norm, not instance; leave --norm out to take it over"


def test_an_encoder_by_an_unknown_name_is_refused(dataset: Path, tmp_path: Path) -> None:
    message = refusal(
        "finetune", dataset, "--target", "organ=7", "--encoder", "resnet", "-o", tmp_path / "m.safetensors"
    )
    assert "no model is called 'resnet'; there are: " in message
    assert "polycl-liver" in message


def test_a_model_learns_to_look_beside_a_slice_and_goes_on_so(dataset: Path, tmp_path: Path) -> None:
    alone, wide, on, wider = (tmp_path / f"{name}.safetensors" for name in ("alone", "wide", "on", "wider"))
    given = ("finetune", dataset, "--target", "organ=7", "--steps", 2, "--batch", 2)
    for output, rest in (
        (alone, ()),
        (wide, ("--start", alone, "--beside", 5, "--beside", 10)),
        (on, ("--start", wide)),
        (wider, ("--start", wide, "--beside", 5, "--beside", 10, "--beside", 20)),
    ):
        result = polycl(*given, "-o", output, *rest)
        assert result.exit_code == 0, result.output
    assert checkpoints.load(alone)[0].network.channels == 1
    for path, beside in ((wide, (5, 10)), (on, (5, 10)), (wider, (5, 10, 20))):
        header, weights = checkpoints.load(path)
        assert header.preprocessing.beside == beside
        assert header.network.channels == 1 + 2 * len(beside)
        SegmentationNetwork(header.network).load_state_dict(weights)
    message = refusal(*given, "-o", tmp_path / "other.safetensors", "--start", wide, "--beside", 3)
    expected = "wide.safetensors sees other slices with one; leave --beside out, or begin with --beside 5 --beside 10"
    assert message == expected


def test_slices_and_scans_are_not_both_given(dataset: Path, tmp_path: Path) -> None:
    given = ("finetune", dataset, "--target", "organ=7", "-o", tmp_path / "m.safetensors")
    assert "not both" in refusal(*given, "--slices", 1, "--scans", 1)


def test_absent_slices_need_a_budget(dataset: Path, tmp_path: Path) -> None:
    given = ("finetune", dataset, "--target", "organ=7", "-o", tmp_path / "m.safetensors", "--absent")
    assert "--absent needs --slices or --scans" in refusal(*given)


def test_absent_slices_are_those_without_the_target(dataset: Path) -> None:
    from polycl.cli.finetune import _data, _few

    targets = [Target("organ", (7,))]
    whole = _data(dataset, targets, None, None, [])
    few = _few(whole, 2, None, 0, absent=True)
    assert len(few.slices) == 2
    assert all(one.classes.any() for one in few.slices)
    (absent,) = [pool for pool in few.negatives if pool]
    assert absent
    assert not any(one.classes.any() for one in absent)
    assert len(absent) == sum(not one.classes.any() for one in whole.slices)


def test_what_is_outlined_is_the_rest_that_holds_a_target(dataset: Path, tmp_path: Path) -> None:
    from polycl.cli.finetune import _data, _few, _rest

    whole = _data(dataset, [Target("organ", (7,))], None, None, [])
    few = _few(whole, 2, None, 0, absent=True)
    rest = _rest(whole, few, 1000, 0)
    assert all(one.classes.any() for one in rest)
    assert {id(one) for one in (*rest, *few.slices)} == {id(one) for one in whole.slices if one.classes.any()}
    assert len(_rest(whole, few, 1, 0)) == 1
    assert _rest(whole, few, 0, 0) == []
    given = ("finetune", dataset, "--target", "organ=7", "-o", tmp_path / "m.safetensors", "--outline", 5)
    assert "--outline needs --slices or --scans" in refusal(*given)


@pytest.mark.slow
def test_a_network_learns_from_its_own_outlines(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    given = ("finetune", dataset, "--target", "organ=7", "-o", output, "--slices", 2, "--absent", "--outline", 3)
    assert polycl(*given, "--steps", 1, "--batch", 2).exit_code == 0
    assert checkpoints.load(output)[0].labels == {"organ": 1}
    assert not list(tmp_path.glob("m.first*"))


@pytest.mark.slow
def test_a_whole_segmenter_goes_on_or_is_refused(dataset: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    short = ("--steps", 1, "--batch", 2)
    assert polycl("finetune", dataset, "--target", "organ=7", "-o", first, *short).exit_code == 0
    on = ("--start", first, "-o", second, *short)
    slow = ("--learning-rate", 1e-6, "--smooth", 4)
    assert polycl("finetune", dataset, "--target", "organ=7", *on, *slow).exit_code == 0
    (_, before), (header, after) = (checkpoints.load(one) for one in (first, second))
    learnt = [name for name, value in before.items() if value.is_floating_point() and "running" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-4) for name in learnt), "it goes on from the first"
    assert (header.provenance.parent, header.smooth) == ("first.safetensors", 4.0)
    two = refusal("finetune", dataset, "--target", "a=7", "--target", "b=8", *on)
    assert "first.safetensors has 1 labels, organ, and 2 targets were given" in two
    both = refusal("finetune", dataset, "--target", "organ=7", "--encoder", first, *on)
    assert both == "give --start or --encoder, not both"
