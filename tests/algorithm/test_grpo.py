"""Advantages of groups and the clipped loss over tokens, beside numbers worked out by hand."""

import pytest
import torch

from distqtrl.algorithm import grpo


def test_advantages_compare_a_group_with_itself():
    rewards_NJ = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    scaled = grpo.advantages(rewards_NJ, scaled=True, epsilon=1e-8)
    assert scaled[0].tolist() == pytest.approx([0.866025, -0.866025, -0.866025, 0.866025])  # 0.5 / sqrt(1 / 3)
    assert scaled[1].tolist() == [0, 0, 0, 0]
    assert grpo.advantages(rewards_NJ, scaled=False, epsilon=1e-8)[0].tolist() == [0.5, -0.5, -0.5, 0.5]


@pytest.mark.parametrize("reward", [0.1, 0.2, 1 / 3, 0.7, 0.9])
@pytest.mark.parametrize("size", [2, 3, 8, 16])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_group_of_equal_rewards_says_nothing(reward, size, scaled):
    """Also where the mean of equal numbers is another number, by rounding."""
    rewards_NJ = torch.full((2, size), reward)
    rewards_NJ[1, 0] = 0.0
    adv_NJ = grpo.advantages(rewards_NJ, scaled=scaled, epsilon=1e-8)
    assert adv_NJ[0].tolist() == [0.0] * size
    assert adv_NJ[1].abs().min() > 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.27, 2.0, -2.54, -2.0),  # below the upper end, 1.28
        (1.5, 2.0, -2.56, 0.0),  # held there
        (0.5, 2.0, -1.0, -2.0),  # a likely token that became unlikely is still pulled back
        (0.5, -2.0, 1.6, 0.0),  # held at the lower end, 0.8
        (1.5, -2.0, 3.0, 2.0),
    ],
)
def test_every_token_is_held_where_it_went_too_far(ratio, advantage, loss, slope):
    log_ratio_NT = torch.tensor([[ratio, 9.0]]).log().requires_grad_()
    value = grpo.loss(log_ratio_NT, torch.tensor([advantage]), torch.tensor([[1.0, 0.0]]), low=0.2, high=0.28)
    value.backward()
    assert value.item() == pytest.approx(loss, rel=1e-6)
    assert log_ratio_NT.grad[0].tolist() == pytest.approx([slope * ratio, 0], rel=1e-6)


def test_a_weight_scales_its_token():
    values = [
        float(grpo.loss(torch.zeros(1, 2), torch.ones(1), torch.tensor([weights]), low=0.2, high=0.2))
        for weights in ([1.0, 1.0], [0.5, 1.0])
    ]
    assert values == [-2.0, -1.5]
