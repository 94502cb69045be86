"""SAM 2's decoder with the weights of MobileSAM's ONNX decoder gives the same masks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from polycl.propagate.architecture import ARCHITECTURES, build
from polycl.propagate.training.mobile_sam import decoder_weights, start_as_sam


@pytest.mark.data
@pytest.mark.slow
def test_sams_decoder_in_sam_2(real_data: Path) -> None:
    file = real_data.parent / "weights" / "mobile_sam" / "decoder.onnx"
    if not file.is_file():
        pytest.skip("needs the weights of MobileSAM in ../shared/weights/mobile_sam")
    import onnxruntime

    network = build(ARCHITECTURES["ct"].at(1024)).eval()
    start_as_sam(network, decoder_weights(file))
    embedding = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    corners, labels = np.array([[[300, 400], [700, 800]]], np.float32), np.array([[2, 3]], np.float32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(
        ["low_res_masks"],
        {
            "image_embeddings": embedding.numpy(),
            "point_coords": corners,
            "point_labels": labels,
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([1024, 1024], np.float32),
        },
    )
    prompts, decoder = network.sam_prompt_encoder, network.sam_mask_decoder
    decoder.pred_obj_scores = False  # the token that SAM 2 adds would be attended to
    points = (torch.from_numpy(corners), torch.from_numpy(labels))
    with torch.no_grad():
        sparse, dense = prompts(points=points, boxes=None, masks=None)
        masks, scores, _, _ = decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse[:, :2],  # SAM 2 adds a padding point, the export does not
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[torch.zeros(1, 32, 256, 256), torch.zeros(1, 64, 128, 128)],
        )
    best = 1 + int(scores[0, 1:].argmax())
    np.testing.assert_allclose(masks[0, best].numpy(), wanted[0, 0], atol=1e-3)
