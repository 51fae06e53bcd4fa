"""The supervised rival is what it claims to be, and learns."""

import numpy as np
import pytest
import torch

from armillary.evaluation.resnet import ResNet18
from armillary.evaluation.settings import SupervisedSettings
from armillary.evaluation.supervised import num_steps, train_network, turned


def test_with_the_published_stem_it_has_the_published_number_of_weights():
    # 11,689,512 as torchvision counts them, of which the head of 1000 classes is 513,000.
    assert sum(p.numel() for p in ResNet18(3, stem_stride=4).parameters()) == 11_689_512 - 513_000 + 513


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_stems_shrink_an_image_by_what_they_say(stem_stride):
    network = ResNet18(4, stem_stride).eval()

    assert network.stem(torch.zeros(1, 4, 32, 32)).shape[-1] == 32 // stem_stride
    assert network(torch.zeros(2, 4, 32, 32)).shape == (2,)


def test_turned_images_are_the_eight_of_the_square():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    generator = torch.Generator().manual_seed(0)

    found = turned(image.expand(200, -1, -1, -1), generator)

    expected = {
        tuple(torch.rot90(part, n, (2, 3)).flatten().tolist()) for part in (image, image.flip(3)) for n in range(4)
    }
    assert {tuple(one.flatten().tolist()) for one in found} == expected


def test_steps_follow_the_labels_within_bounds():
    settings = SupervisedSettings(epochs=10, min_steps=50, max_steps=1000, batch_size=64)

    assert num_steps(settings, 10) == 50
    assert num_steps(settings, 3200) == 500
    assert num_steps(settings, 100_000) == 1000


def test_it_learns_brightness_and_keeps_its_best_state():
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 1, 90)
    images = torch.from_numpy(labels[:, None, None, None] + 0.1 * rng.normal(size=(90, 1, 8, 8))).float()
    settings = SupervisedSettings(
        epochs=1, min_steps=30, max_steps=30, batch_size=16, num_validations=5, precision="32", learning_rate=1e-3
    )

    found = train_network(images[:50], labels[:50], images[50:70], labels[50:70], images[70:], settings)

    assert [row["step"] for row in found.curve] == [6, 12, 18, 24, 30]
    best = max(found.curve, key=lambda row: row["r2"])
    assert found.best_step == best["step"]
    assert np.corrcoef(found.predicted, labels[70:])[0, 1] > 0.8
