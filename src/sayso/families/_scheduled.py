"""What follows from a schedule and from what the network predicts: noise, targets, steps."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from sayso.families import _schedule
from sayso.families._schedule import Kind, Noise, per_row


class Scheduled(ABC):
    """A model whose schedule is `alpha_sigma`, and which predicts the noise (eps), v or velocity.

    All tensors of images are [b c h w] and scaled latents; times have a number for each row.
    """

    kind: Kind

    @abstractmethod
    def alpha_sigma(
        self, t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """How much image and how much noise is in the noisy latents at t."""

    def add_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """The noisy latents at t."""
        return _schedule.add_noise(latents, noise, *self.alpha_sigma(t))

    def target(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """What the network should predict."""
        return _schedule.target(self.kind, latents, noise, *self.alpha_sigma(t))

    def to_image(
        self, noisy: Float[Tensor, "b c h w"], prediction: Tensor, t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The image's latents that a prediction at t means."""
        return _schedule.to_image(self.kind, noisy, prediction, *self.alpha_sigma(t))

    def to_noise(
        self, noisy: Float[Tensor, "b c h w"], prediction: Tensor, t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise that a prediction at t means."""
        return _schedule.to_noise(self.kind, noisy, prediction, *self.alpha_sigma(t))

    def transition(
        self,
        noisy: Float[Tensor, "b c h w"],
        prediction: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        eta: float,
        form: Noise = "ancestral",
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Mean and standard deviation of the latents at s < t, in fp32.

        At s = 0 it is the image itself: nothing is left of the noise.

        Args:
            noisy: latents at t.
            prediction: the network's at t, with guidance if any.
            t, s: times, s < t.
            eta: strength of the fresh noise, ≥ 0; 0 = none.
            form: see `_schedule.step_noise`.
        """
        noisy, prediction = noisy.float(), prediction.float()
        now, (alpha, sigma) = self.alpha_sigma(t), self.alpha_sigma(s)
        end = s <= 0
        alpha = alpha.masked_fill(end, 1.0)
        std, kept = _schedule.step_noise(form, eta, now, (alpha, sigma), t - s)
        std, kept = std.masked_fill(end, 0.0), kept.masked_fill(end, 0.0)
        image = _schedule.to_image(self.kind, noisy, prediction, *now)
        noise = _schedule.to_noise(self.kind, noisy, prediction, *now)
        return per_row(alpha, noisy) * image + per_row(kept, noisy) * noise, std

    def recovered(
        self,
        noisy: Float[Tensor, "b c h w"],
        prediction: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """The image when the model has gone from t to s < t, and the known noise is taken off.

        It is the image itself where the prediction is exact, and differs from it by the error of
        that part of the way only. At s = 0 it is `to_image`.

        Args:
            noise: that `noisy` was made with.
        Source: Shen et al. 2025, arXiv 2509.06942 (Direct-Align), for every schedule.
        """
        mean, _ = self.transition(noisy, prediction, t, s, 0.0)
        alpha, sigma = self.alpha_sigma(s)
        end = s <= 0
        sigma, alpha = sigma.masked_fill(end, 0.0), alpha.masked_fill(end, 1.0)
        return (mean - per_row(sigma, mean) * noise) / per_row(alpha, mean)
