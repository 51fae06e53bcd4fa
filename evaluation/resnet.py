"""ResNet-18 (He et al. 2016, arXiv 1512.03385, table 1), for images of any number of bands and one number as answer.

Four stages of two basic blocks, widths 64 to 512, batch normalisation. As published the stem shrinks an image of 224
pixels fourfold (a 7x7 convolution of stride 2, then a pooling). Images of galaxies are small, some 50 pixels, of which
the galaxy fills ten to thirty: with `stem_stride` 2 or 1 the stem is a 3x3 convolution without pooling, as is the
custom for small images (the paper's section 4.2), which keeps four or sixteen times as many places and costs as many
times more.
"""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (64, 128, 256, 512)
BLOCKS = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, num_inputs: int, width: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(num_inputs, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        # The block starts as its shortcut: deep networks then train faster (Goyal et al. 2017, arXiv 1706.02677).
        nn.init.zeros_(self.second_norm.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or num_inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(num_inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] to [B, width, H / stride, W / stride]."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Images [B, C, H, W] to one number for each."""

    def __init__(self, num_bands: int, stem_stride: int = 4):
        super().__init__()
        if stem_stride == 4:
            stem: list[nn.Module] = [nn.Conv2d(num_bands, WIDTHS[0], 7, 2, 3, bias=False)]
        else:
            stem = [nn.Conv2d(num_bands, WIDTHS[0], 3, stem_stride, 1, bias=False)]
        stem += [nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
        if stem_stride == 4:
            stem.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*stem)
        blocks, before = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for block in range(BLOCKS):
                blocks.append(BasicBlock(before, width, 2 if stage and not block else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """One number for each image, [B]."""
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))[:, 0]
