"""The settings of DVIB. What ``paper`` and ``reference`` set is in ``training/presets``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.common.choices import Variant

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=65_536)]


class DvibConfig(BaseModel):
    """One instance describes the whole objective around a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Variant = Field(
        "none", description="none: the plain model; constant: DVIB_c, Eq. 11; adaptive: DVIB_a, Eq. 12"
    )
    sigma: Weight = Field(1e-3, description="σ of Eq. 11, standard deviation of the constant perturbation")
    noise: Literal["gaussian", "uniform", "dropout"] = Field(
        "gaussian",
        description="what is drawn: a normal; a uniform of equal variance; or zeros in place of entries of H, "
        "at rate σ or φ",
    )
    net_phi: Literal["separate", "shared"] = Field(
        "separate", description="Net_φ: one for each place that is perturbed, or one for all places of the same width"
    )
    net_phi_hidden: tuple[Width, ...] = Field((32, 32), description="hidden widths of Net_φ, Eq. 14")
    divergence: Literal["js", "kl_forward", "kl_reverse", "ref_entropy"] = Field(
        "js",
        description="self-distillation: the Jensen–Shannon divergence of Eq. 10; KL(clean ‖ perturbed); "
        "KL(perturbed ‖ clean); or the entropy-like term that the authors' code computes in its place",
    )
    distil_on: Literal["features", "scores"] = Field(
        "features", description="softmax over the dimensions of Z, or over the items' scores of each user"
    )
    rows: Literal["batch", "all"] = Field(
        "batch",
        description="items that both passes, distillation, entropy and regulariser cover: the batch's, or all",
    )
    candidates: Literal["training", "all"] = Field(
        "training",
        description="items whose scores are distilled and take part in the entropy, under rows: all. Those that never "
        "occur in training would be lifted by it into every ranking",
    )
    sampled_items: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="so many training items, drawn in each step, join the batch's items under rows: batch, for a "
        "wider softmax over scores",
    )
    mix: Literal["add", "convex"] = Field(
        "add",
        description="add: L0 + γ0·L0δ + γd·D + Lr (Eq. 8); convex: (1−γd)(L0 + γ0·L0δ) + γd·D + Lr (authors' code)",
    )
    gamma_l0: Weight = Field(
        1.0,
        description="weight of L0, the task's loss of the clean pass; 0 leaves it to the perturbed pass (Fig. 4). "
        "The weight decay stays as it is",
    )
    gamma_0: Weight = Field(1.0, description="γ0 of Eq. 9, weight of the loss of the perturbed pass")
    gamma_d: Weight = Field(0.1, description="γd of Eq. 10, weight of the self-distillation")
    gamma_r: Weight = Field(1e-3, description="γr of Eq. 13, weight of the regulariser (adaptive only)")
    perturbed_terms: tuple[str, ...] | None = Field(
        None, min_length=1, description="loss terms that the perturbed pass counts, by name; null counts all"
    )
    entropy: Weight = Field(
        0.0,
        description="weight of log n − H(softmax of a user's n scores), of the clean pass alone; also for the plain "
        "model. It flattens the scores: what the authors' term does in the main, without noise or a second pass",
    )
    prior: float = Field(
        0.5,
        gt=0,
        allow_inf_nan=False,
        description="a: variance of the prior under eq13, its standard deviation under kl_std",
    )
    regulariser: Literal["eq13", "kl_std"] = Field("eq13", description="Eq. 13, or the authors' KL of two normals")
    phi_is: Literal["std", "var"] = Field(
        "std",
        description="what Eq. 13 takes φ for: the noise's standard deviation (so φ² is the variance), or the variance",
    )
    decay_both: bool = Field(
        False, description="count the model's weight decay in the perturbed pass too (authors' code)"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.noise == "dropout" and self.variant == "constant" and self.sigma > 1:
            raise ValueError(f"dvib.noise=dropout takes dvib.sigma for a rate, at most 1, got {self.sigma}; lower it")
        if self.mix == "convex" and self.gamma_d > 1:
            raise ValueError(f"dvib.mix=convex takes dvib.gamma_d for a share, at most 1, got {self.gamma_d}; lower it")
        if self.variant != "none" and self.gamma_l0 == self.gamma_0 == 0:
            raise ValueError("dvib.gamma_l0=0 and dvib.gamma_0=0 leave no pass to learn the task by; raise one of them")
        if self.sampled_items and self.rows == "all":
            raise ValueError(
                f"dvib.sampled_items={self.sampled_items} adds nothing to dvib.rows=all; leave it at 0, "
                "or choose dvib.rows=batch"
            )
        return self
