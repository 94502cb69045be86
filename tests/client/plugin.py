"""3D Slicer's plugins as the `monailabel` wheel brings them, their own code run without 3D Slicer.

What a panel asks of 3D Slicer (widgets, scene, files) is answered by stand-ins, so that what it sends is what the panel
makes of it, not what we think it makes.
"""

import importlib.util
import shutil
import site
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch
from urllib.request import urlopen

import pytest

PLUGINS = Path("monailabel/plugins/slicer")
CLIENT = "MONAILabel/MONAILabelLib/client.py"
STAND_INS = ("ctk", "qt", "SampleData", "sitkUtils", "slicer", "slicer.i18n", "vtk", "vtkSegmentationCore")


def plugin_folder() -> Path:
    """Where pip or uv left the wheel's data. The test is skipped where neither did."""
    roots = [
        Path(sys.prefix),
        *(data / "data" for root in site.getsitepackages() for data in Path(root).glob("monailabel*.data")),
    ]
    found = [root / PLUGINS for root in roots if (root / PLUGINS / CLIENT).is_file()]
    if not found:
        pytest.skip("the Slicer plugin is not among the installed files")
    return found[0]


def load(path: Path, name: str) -> ModuleType:
    """The file as a module of that name, which is not kept."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METHODS = (
    *("getParamsFromConfig", "currentSegment", "currentScribSegment", "getSessionId", "onUploadImage"),
    *("initSample", "onClickSegmentation", "invalidateConfigTable", "getSelectedOptionSection"),
    "getSelectedOptionName",
)
"""Those of the panel's own that its buttons lead to."""


class Shown(NamedTuple):
    """What a panel was about to show: the file of a reply, the names of its values, and the slice it is for."""

    file: Path
    labels: list[str]
    slice: int | None


@dataclass
class Segment:
    """A segment of 3D Slicer's."""

    name: str

    def GetName(self) -> str:
        return self.name

    def SetTag(self, *tag: str) -> None:
        """The panel keeps its points there, and does not read them again here."""


@dataclass
class Segmentation:
    """The segments in their order; their names are their ids, as the panel makes them."""

    names: Sequence[str]

    def GetNumberOfSegments(self) -> int:
        return len(self.names)

    def GetNthSegmentID(self, number: int) -> str:
        return self.names[number]

    def GetSegment(self, name: str) -> Segment:
        return Segment(name)

    def GetSegmentIdBySegmentName(self, name: str) -> str:
        return name

    def GetSegmentIDs(self, found: Any) -> None:
        """The panel hands `found` on to an export, which is a stand-in as well."""


@dataclass
class Panel:
    """The MONAI Label module of 3D Slicer at a server.

    `saves` is the file that 3D Slicer would write when the panel saves a node, whatever the node; `loaded` the image
    that it got from the server.
    """

    address: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    saves: Path | None = None
    offset: float = 0.0
    shown: list[Shown] = field(default_factory=list)
    loaded: Path | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._modules: dict[str, Any] = {name: MagicMock() for name in STAND_INS}
        slicer = self._modules["slicer"]
        bases = ("Module", "ModuleWidget", "ModuleLogic", "ModuleTest")
        scripted = ModuleType("slicer.ScriptedLoadableModule")
        for base in bases:
            setattr(scripted, f"ScriptedLoadable{base}", type(base, (), {"__init__": lambda self, *a: None}))
        util = slicer.util
        util.VTKObservationMixin = type("Mixin", (), {})
        util.settingsValue = lambda key, default=None, converter=None: self.settings.get(key, default)
        util.saveNode = lambda node, path: shutil.copyfile(self._saved(path), path)
        util.errorDisplay = _fail
        slicer.app.layoutManager().sliceWidget().sliceLogic().GetSliceOffset = lambda: self.offset
        self._modules["SampleData"].SampleDataLogic = lambda: SimpleNamespace(downloadFromURL=self._download)
        self._modules["slicer.i18n"].tr = str
        self._modules["ctk"].ctkSettingsPanel = self._modules["qt"].QDialog = object
        self._modules |= {"slicer.util": util, "slicer.ScriptedLoadableModule": scripted}
        source = plugin_folder() / "MONAILabel"
        self._modules["MONAILabelLib"] = SimpleNamespace(
            GenericAnatomyColors={},
            MONAILabelClient=load(source / "MONAILabelLib/client.py", "client").MONAILabelClient,
        )
        with self._in_slicer():
            self.module = load(source / "MONAILabel.py", "slicer_monailabel_panel")
            self.logic = self.module.MONAILabelLogic(str(self.folder), self.address, None, "user-xyz")
        self.widget = self._widget()

    def _widget(self) -> Any:
        """The state that the module's methods read; what is left out is a stand-in."""
        widget = MagicMock()
        own = self.module.MONAILabelWidget
        for name in METHODS:
            setattr(widget, name, getattr(own, name).__get__(widget))
        widget.logic, widget.samples, widget.file_ext, widget.tmpdir = self.logic, {}, ".nii.gz", str(self.folder)
        widget.deepedit_multi_label, widget.resetLabelState, widget._volumeNode = False, True, None
        widget.getPermissionForImageDataUpload = lambda: True
        widget.serverUrl = lambda: self.address
        widget.isTrainingRunning = lambda check_only=True: self.logic.train_status(check_only)
        widget.updateSegmentationMask = self._show
        widget.ui.optionsSection.currentIndex = widget.ui.optionsName.currentIndex = 0
        widget.ui.sam2PlaceWidget.currentNode = widget.ui.scribblesPlaceWidget.currentNode = lambda: None
        return widget

    def connect(self) -> dict[str, Any]:
        """Ask what the server has, as the button beside its address does."""
        self.widget.info = self.logic.info()
        self.widget.models = self.widget.info["models"]
        return dict(self.widget.info)

    def open(self, image: str, **more: Any) -> None:
        """An image of the store, or one of the user's own (`session=True`), is on the screen."""
        self._modules["slicer"].mrmlScene.GetFirstNodeByClass().GetName = lambda: image
        self.widget.current_sample = {"id": image, **more}

    def segments(self, names: Sequence[str], current: str = "") -> None:
        """The segments in the list, one of them chosen."""
        self.widget._segmentNode.GetSegmentation.return_value = Segmentation(names)
        self.widget.ui.labelComboBox.currentText = self.widget.ui.scribLabelComboBox.currentText = current or names[0]

    def points(self, inside: Sequence[Sequence[int]], outside: Sequence[Sequence[int]] = ()) -> None:
        """The points of the section Smart Edit, as voxels."""
        placed = {"foreground": [list(one) for one in inside], "background": [list(one) for one in outside]}
        self.widget.getControlPointsXYZ = lambda node, name: placed[name]

    def roi(self, ends: list[int] | None) -> None:
        """The box of both sections, as voxels, unsorted where an axis of the image runs against the patient's."""
        node = MagicMock() if ends else None
        self.widget.ui.sam2PlaceWidget.currentNode = self.widget.ui.scribblesPlaceWidget.currentNode = lambda: node
        self.widget.getROIPointsXYZ = lambda node: ends

    def options(self, section: str, name: str, **values: str) -> None:
        """What is chosen in the section Options, which the panel reads with its next request."""
        cells = [[SimpleNamespace(text=lambda text=text: text) for text in row] for row in values.items()]
        self.widget.ui.optionsSection.itemText, self.widget.ui.optionsName.itemText = lambda _: section, lambda _: name
        self.widget.ui.configTable.rowCount = len(cells)
        self.widget.ui.configTable.item = lambda row, column: cells[row][column]

    def press(self, method: str, *arguments: Any, **choices: str) -> Any:
        """Call a method of the module's with a selector set, as `segmentationModelSelector="polycl-liver"`."""
        for selector, text in choices.items():
            getattr(self.widget.ui, selector).currentText = text
        with self._in_slicer():
            return getattr(self.module.MONAILabelWidget, method)(self.widget, *arguments)

    def _show(self, file: str | None, labels: Sequence[str], slice: int | None = None, freeze: Any = None) -> None:
        if file:
            kept = self.folder / f"shown_{len(self.shown)}{''.join(Path(file).suffixes)}"
            shutil.copyfile(file, kept)
            self.shown.append(Shown(kept, list(labels), slice))

    def _download(self, nodeNames: str, fileNames: str, uris: str, checksums: str | None) -> list[Any]:
        """As the logic of Sample Data: the file lies in a folder under its name, and is loaded from there."""
        assert checksums is None, "3D Slicer would compare it"
        self.loaded = self.folder / fileNames
        with urlopen(uris) as answer:
            self.loaded.write_bytes(answer.read())
        return [MagicMock()]

    def _saved(self, path: str) -> Path:
        assert self.saves is not None
        assert path.endswith("".join(self.saves.suffixes)), f"{self.saves.name} is not of the kind of {path}"
        return self.saves

    @contextmanager
    def _in_slicer(self) -> Iterator[None]:
        """The stand-ins are what the module finds."""
        with patch.dict(sys.modules, self._modules), patch("time.sleep"):
            yield


def _fail(text: str, detailedText: str = "") -> None:
    pytest.fail(f"the panel shows an error: {text}\n{detailedText}")


class Reviewer:
    """The module MONAI Label Reviewer at a server, by the library it brings."""

    def __init__(self, address: str) -> None:
        folder = str(plugin_folder() / "MONAILabelReviewer")
        before = set(sys.modules)
        with patch.object(sys, "path", [folder, *sys.path]):
            module = importlib.import_module("MONAILabelReviewerLib.ImageDataController")
        for name in set(sys.modules) - before:
            if name.startswith("MONAILabelReviewerLib"):
                del sys.modules[name]
        self.controller = module.ImageDataController()
        assert self.controller.connectToMonaiServer(address)

    def images(self) -> dict[str, Any]:
        """What the module shows, read anew from the server."""
        assert self.controller.initMetaDataProcessing()
        return dict(self.controller.imageDataExtractor.nameToImageData)

    def judge(self, image: Any, tag: str, status: str, level: str, who: str, comment: str) -> None:
        """The buttons of the section on the current version, then *Next*; as `persistMetaInMonaiServer`."""
        judged = {"status": status, "level": level, "approvedBy": who, "comment": comment}
        assert not image.isEqualSegmentationMeta(tag=tag, **judged), "the module would send nothing"
        image.updateSegmentationMetaByVerionTag(tag=tag, **judged)
        self.controller.updateLabelInfoOfAllVersionTags(image, tag, level, image.getMetaByVersionTag(tag=tag))

    def save(self, image: Any, file: Path, who: str, tag: str = "") -> str:
        """*Save as new version*, or overwrite one; as `persistEditedSegmentation`. Returns the version's tag."""
        tag = tag or image.getNewVersionName()
        image.updateSegmentationMetaByVerionTag(tag=tag, status="", level="", approvedBy=who, comment="edited")
        self.controller.saveLabelInMonaiServer(image.getName(), str(file), tag, image.obtainUpdatedParams(tag))
        return tag
