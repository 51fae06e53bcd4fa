"""The contrastive head and InfoNCE."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from armillary.models.alignment import MAXIMUM_SCALE, AlignmentHead, AlignmentHeadSettings, info_nce
from armillary.tokenizers.pretrained import PretrainedError


def unit(seed, shape=(5, 8)):
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_info_nce_equals_its_formula_by_loops():
    first, second, scale = unit(0), unit(1), 7.0
    expected = 0.0
    for i in range(5):
        for rows, columns in ((first, second), (second, first)):
            scores = [scale * float(rows[i] @ column) for column in columns]
            expected += 0.5 * (math.log(sum(map(math.exp, scores))) - scores[i])
    assert info_nce(first, second, torch.tensor(scale)).item() == pytest.approx(expected, rel=1e-5)


def test_one_pair_at_a_time_has_no_loss():
    """AstroCLIP crashes on a single object."""
    assert info_nce(unit(0, (1, 8)), unit(1, (1, 8)), torch.tensor(10.0)) == 0


WORKER = """
import os, sys, torch, torch.distributed as dist
from armillary.models.alignment import info_nce
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
first, second = torch.load(f"{folder}/vectors.pt", weights_only=True)
mine = [v[3 * rank : 3 * rank + 3].clone().requires_grad_() for v in (first, second)]
loss = info_nce(*mine, torch.tensor(7.0))
loss.backward()
torch.save([loss.detach(), *(v.grad for v in mine)], f"{folder}/answer-{rank}.pt")
dist.barrier()
os._exit(0)  # gloo's threads sometimes abort a process that ends in the ordinary way
"""


def test_negatives_come_from_all_processes_in_loss_and_gradient(tmp_path):
    """AstroCLIP's negatives stay on each GPU."""
    whole = [unit(0, (6, 8)).requires_grad_(), unit(1, (6, 8)).requires_grad_()]
    loss = info_nce(*whole, torch.tensor(7.0))
    loss.backward()
    torch.save([v.detach() for v in whole], tmp_path / "vectors.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    answers = [torch.load(tmp_path / f"answer-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert sum(a[0].item() for a in answers) == pytest.approx(loss.item(), rel=1e-5)
    for index, vectors in enumerate(whole, 1):
        assert torch.allclose(torch.cat([a[index] for a in answers]), vectors.grad, atol=1e-5)


def test_pairs_that_agree_have_less_loss_than_pairs_that_do_not():
    vectors, scale = unit(2, (6, 32)), torch.tensor(50.0)
    assert info_nce(vectors, vectors, scale) < 1e-3
    assert info_nce(vectors, vectors.flip(0), scale) > 6 * math.log(6)


def test_vectors_have_unit_length_and_masked_tokens_change_nothing(head):
    vectors = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[:, 0] = True
    for view in ("image", "spectrum"):
        pooled = head(view, vectors, mask)
        assert torch.allclose(pooled.norm(dim=1), torch.ones(4), atol=1e-5)
        assert torch.equal(pooled, head(view, torch.where(mask[..., None], vectors, 9.0), mask))
        assert torch.allclose(pooled[2:3], head(view, vectors[2:3][:, mask[2]], mask[2:3][:, mask[2]]), atol=1e-5)


def test_each_view_has_a_pooling_of_its_own(head):
    vectors, mask = (
        torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)),
        torch.ones(2, 3, dtype=torch.bool),
    )
    assert not torch.allclose(head("image", vectors, mask), head("spectrum", vectors, mask), atol=1e-2)
    with pytest.raises(KeyError, match="radio"):
        head("radio", vectors, mask)


@pytest.mark.parametrize("log_scale, expected", [(-3.0, 1.0), (math.log(10), 10.0), (9.0, MAXIMUM_SCALE)])
def test_the_scale_stays_in_its_limits(log_scale, expected):
    head = AlignmentHead(AlignmentHeadSettings(input_width=32))
    head.log_scale.data.fill_(log_scale)
    assert head.scale().item() == pytest.approx(expected, rel=1e-5)


def test_the_head_learns_one_batch_by_heart():
    torch.manual_seed(0)
    head = AlignmentHead(AlignmentHeadSettings(input_width=32, aligned_width=16)).train()
    images, spectra = torch.randn(8, 6, 32), torch.randn(8, 4, 32)
    masks = torch.ones(8, 6, dtype=torch.bool), torch.ones(8, 4, dtype=torch.bool)
    optimizer = torch.optim.AdamW(head.parameters(), 5e-3)
    for _ in range(60):
        loss = info_nce(head("image", images, masks[0]), head("spectrum", spectra, masks[1]), head.scale()) / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * math.log(8)


def test_a_saved_head_comes_back_bit_for_bit_and_a_torn_one_is_an_error(head, tmp_path):
    head.save_pretrained(tmp_path / "head")
    loaded = AlignmentHead.from_pretrained(tmp_path / "head")
    assert loaded.settings == head.settings
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    path = tmp_path / "head" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match="expected a whole safetensors file"):
        AlignmentHead.from_pretrained(tmp_path / "head")
