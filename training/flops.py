"""Floating-point operations of a training step, and how many a device could do: their ratio is the MFU.

Model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B) is the rate of the operations that the
model asks for, over the peak rate of the device. What an implementation does beyond them (padding, logits of other
vocabularies, activations worked out again) counts as nothing done.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.masked_transformer import MaskedTransformer
from ..tokenizers.blocks import mlp_width

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A40": 150.0,
    "V100": 125.0,
}
"""Dense bf16 (V100: float16) matrix products, from NVIDIA's data sheets; the first name in the device's own is its."""


@dataclass(frozen=True)
class TokenFlops:
    """Operations of one forward pass, by what they grow with; a multiplication with an addition counts as two.

    With n inputs and t targets of an object, whose vocabularies have V_j codes:
    inputs n + targets t + input_pairs n^2 + cross_pairs n t + logits sum_j V_j.

    Blocks have four projections of the attention and three of the feed-forward layer. In the decoder, targets are
    projected to queries and from the output, inputs to keys and values. Attention itself takes 4 D for each pair. What
    is done once for a batch, whatever its size (vectors of codes), or once for a slot (instruments) is left out.
    """

    inputs: int
    targets: int
    input_pairs: int
    cross_pairs: int
    logits: int

    def of_training(
        self,
        input_mask: Bool[Tensor, "B N"],
        target_mask: Bool[Tensor, "B T"],
        num_codes: Float[Tensor, "B T"],
    ) -> Float[Tensor, ""]:
        """Operations of a training step: three times those of the forward pass, for the backward pass multiplies twice.

        `num_codes`: the size of each target's vocabulary.
        """
        n, t = input_mask.sum(1).float(), target_mask.sum(1).float()
        forward = self.inputs * n + self.targets * t + self.input_pairs * n**2 + self.cross_pairs * n * t
        return 3 * (forward.sum() + self.logits * (num_codes * target_mask).sum())


def token_flops(transformer: MaskedTransformer) -> TokenFlops:
    """Of this transformer."""
    config = transformer.config
    width = config.width
    hidden = mlp_width(width)
    place = 2 * transformer.position.project.in_features * width
    square, feed_forward = 2 * width**2, 3 * 2 * width * hidden
    return TokenFlops(
        inputs=place + config.encoder_blocks * (4 * square + feed_forward) + config.decoder_blocks * 2 * square,
        targets=place + config.decoder_blocks * (2 * square + feed_forward),
        input_pairs=config.encoder_blocks * 4 * width,
        cross_pairs=config.decoder_blocks * 4 * width,
        logits=2 * width,
    )


def peak_flops(device: torch.device) -> float | None:
    """Operations a second of a GPU at its best, None where it is not known."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_name(device)
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in found), None)
