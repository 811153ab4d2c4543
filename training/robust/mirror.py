"""Mirror Gradient: a rule for the steps of an epoch, whatever the model and its objective.

Zhong, Huang, Li, Wen, Qin and Lin, "Mirror Gradient: Towards Robust Multimodal Recommender Systems via Exploring Flat
Local Minima", WWW 2024. On every β-th batch, with θ the parameters and L the batch's loss:

    θ' = θ  - step(∇ α1 L(θ))
    θ" = θ' - step(∇(-α2 L(θ')))

and on the others θ' = θ - step(∇L(θ)). ``step`` is the optimiser's, so that both steps enter Adam's moments. In batches
counted from 0, β divides the number of a mirrored one, as in the authors' code.

Both losses see the same draws: perturbation, dropped features, sampled candidates. L is then one function, which is
what the paper analyses; the authors' code draws anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from training.robust.config import RobustConfig

ONE_STEP = (1.0,)


def step_weights(config: RobustConfig, number: int) -> tuple[float, ...]:
    """Return what multiplies the loss in each of a batch's steps.

    Args:
        config: Whether the rule applies, and its numbers.
        number: The batch's within its epoch, from 0.
    """
    if config.mg and number % config.mg_interval == 0:
        return config.mg_descent, -config.mg_ascent
    return ONE_STEP


def with_same_draws(weights: tuple[float, ...], generators: Iterable[torch.Generator]) -> Iterator[float]:
    """Yield the weights, and before each but the first put the generators back to where they were at the first.

    However many steps there are, the generators end where one step would leave them: the next batch draws the same.
    """
    if len(weights) == 1:
        yield from weights
        return
    states = [(generator, generator.get_state()) for generator in generators]
    for position, weight in enumerate(weights):
        if position:
            for generator, state in states:
                generator.set_state(state)
        yield weight
