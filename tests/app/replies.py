"""Replies of the server, read and judged."""

import gzip
import json
from email import message_from_bytes
from typing import Any

import nibabel
import numpy as np


def reply(response: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Params and mask of a reply that has both, the mask as .nii.gz."""
    assert response.status_code == 200, response.text
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    params, image = message_from_bytes(head + response.content).get_payload()
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(image.get_payload(decode=True)))
    return json.loads(params.get_payload()), np.asarray(mask.dataobj)


def refused(response: Any, status: int, *words: str) -> None:
    """The reply is a refusal that says why, without a path of this machine."""
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    for word in words:
        assert word in detail
    assert "/tmp" not in detail
    assert "Traceback" not in detail
