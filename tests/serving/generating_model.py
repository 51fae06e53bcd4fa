"""The model of the tests with a `generate` whose samples can be told by hand."""

import torch
from fake_model import FakeModel, features

from armillary.data.modalities import modality
from armillary.models.generated import GeneratedObservations, blank_observation


class GeneratingModel(FakeModel):
    """Samples whose pixels say what they were made of: the object's brightness, the seed and the sample's number."""

    modalities = (*FakeModel.modalities, modality("coefficients/gaia_bp_rp"))

    def generate(self, observations, targets, *, num_samples, seed, like, image_size, **settings):
        (target,) = targets
        ids = observations[0].object_id
        blank = blank_observation(modality(target), ids, like, image_size)
        main = "values" if blank.modality.kind == "coefficients" else "flux"
        bright = sum(features(o, 0)[-1] for o in observations)
        samples = []
        for number in range(num_samples):
            full = torch.full_like(getattr(blank, main), float(bright) + seed + 0.1 * number)
            samples.append(blank._unchecked(**{main: full}))
        return {target: GeneratedObservations(modality(target), tuple(ids), (), tuple(samples))}
