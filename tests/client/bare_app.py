"""A MONAI Label app as its own documentation has it, for a server without any of ours.

Its model answers with the path of the image that it was given. The server runs it as the `main.py` of an app folder.
Its store is the folder `BARE_STUDIES`, so that the server's studies may be the address of a PACS beside it.
"""

import os
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SimpleInferer
from monai.losses import DiceLoss
from monai.transforms import EnsureChannelFirstd, LoadImaged
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.train.basic_train import BasicTrainTask


class Echo(InferTask):  # type: ignore[misc, unused-ignore]
    def __init__(self, path: Path) -> None:
        super().__init__(InferType.SEGMENTATION, {"liver": 1}, 3, "echo")
        self.path = path

    def is_valid(self) -> bool:
        return True

    def get_path(self, validate: bool = True) -> str:
        return str(self.path)

    def __call__(self, request: Any) -> tuple[None, dict[str, Any]]:
        return None, {"image": request["image"], "model": request["model"]}


class Train(BasicTrainTask):  # type: ignore[misc, unused-ignore]
    def network(self, context: Any) -> torch.nn.Module:
        return torch.nn.Conv3d(1, 1, 1)

    def optimizer(self, context: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(context.network.parameters())

    def loss_function(self, context: Any) -> Any:
        return DiceLoss(sigmoid=True)

    def train_pre_transforms(self, context: Any) -> list[Any]:
        keys = ("image", "label")
        return [LoadImaged(keys), EnsureChannelFirstd(keys)]

    def train_post_transforms(self, context: Any) -> list[Any]:
        return []

    def val_inferer(self, context: Any) -> SimpleInferer:
        return SimpleInferer()


class Bare(MONAILabelApp):  # type: ignore[misc, unused-ignore]
    def init_datastore(self) -> LocalDatastore:
        return LocalDatastore(os.environ["BARE_STUDIES"], extensions=["*.nii.gz"])

    def init_infers(self) -> dict[str, InferTask]:
        path = Path(self.app_dir, "model", "tiny.pt")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
        return {"tiny": Echo(path), "other": Echo(path)}

    def init_trainers(self) -> dict[str, BasicTrainTask]:
        return {"polycl": Train(str(Path(self.app_dir, "model")), amp=False)}
