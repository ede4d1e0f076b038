"""Memory that ends on one rank: all halve the microbatch and take the same step again."""

import pytest
import torch
from processes import on_ranks
from test_step import assert_alike, make_stepper, train

from shards.errors import UserError
from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.world import World


class Small(GroupedBatchNorm2d):
    """Has no memory for more than `most` samples on one rank."""

    most, rank = 4, 0

    def forward(self, x):
        if len(x) > self.most and World.rank_here == self.rank:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def test_out_of_memory_on_one_rank_all_halve_and_take_the_same_step():
    def starved():
        stepper = make_stepper()
        World.rank_here = stepper.world.rank
        norms = stepper.reduction.norms
        norms[-1].__class__ = Small  # after other layers have gone forward
        return (train(stepper), stepper.microbatch, stepper.config.train.microbatch)

    (expected,) = on_ranks(1, lambda: train(make_stepper()))
    for found, microbatch, configured in on_ranks(2, starved):
        assert (microbatch, configured) == (4, None)
        assert_alike(found, expected)


def test_out_of_memory_after_some_microsteps_leaves_nothing_of_them():
    def starved():
        stepper, forwards = make_stepper(8), []
        forward = stepper.model

        def second_fails(x):
            forwards.append(len(x))
            if len(forwards) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(x)

        stepper.model = second_fails
        return train(stepper), forwards[:6]

    (expected,) = on_ranks(1, lambda: train(make_stepper()))
    ((found, forwards),) = on_ranks(1, starved)
    assert forwards == [8, 8, 4, 4, 4, 4]
    assert_alike(found, expected)


def test_out_of_memory_with_the_smallest_microbatch_says_what_to_lower():
    def starved():
        stepper = make_stepper()
        World.rank_here, Small.most = 0, 0
        stepper.reduction.norms[0].__class__ = Small
        with pytest.raises(UserError, match=r"norm_batch=2 at a time"):
            train(stepper)
        return stepper.microbatch

    assert on_ranks(2, starved) == [2, 2]
