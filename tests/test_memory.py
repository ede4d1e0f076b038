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


@pytest.mark.parametrize(
    "exact, smallest, message",
    [
        (False, 2, "norm_batch=2 at a time"),
        (True, 4, "train.microbatch=4, which train.exact=true keeps to; lower it"),
    ],
)
def test_where_it_cannot_be_halved_all_ranks_say_what_to_lower(exact, smallest, message):
    """Also where it ends in the middle of the tree of sums."""

    def starved():
        stepper, forwards = make_stepper(4 if exact else None, exact), []
        forward = stepper.model

        def fails(x):
            forwards.append(x)
            if len(forwards) > 1 and stepper.world.rank == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(x)

        stepper.model = fails
        with pytest.raises(UserError, match=message):
            train(stepper)
        return stepper.microbatch

    assert on_ranks(2, starved) == [smallest] * 2
