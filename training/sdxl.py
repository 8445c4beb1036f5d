"""Train an IP-Adapter for a real SDXL base on a folder of captioned pictures (paper, section 3.3).

`accelerate launch -m training.sdxl --base DIR --image-encoder DIR --pictures DIR --out DIR`.
Everything is frozen but the projection and K', V'; the trained file has the public key names. It
shares the bundled model's projection and attention.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import CLIPVisionModelWithProjection

from training import decoupled, layout
from training.architecture import IMAGE_TOKENS
from training.folder import Batch, Folder, collate
from training.projection import HEAD_DIM, LinearProjection, Resampler

#: Chances of dropping the text, the image and both (paper, section 4.1.2).
DROP: Final = 0.05
PLUS_TOKENS: Final = 16
RESAMPLER: Final = 1280
TRAINED: Final = "trained.safetensors"


@dataclass(frozen=True)
class Recipe:
    """The settings of one training. The defaults of the rates are the paper's (section 4.1.2)."""

    base: Path
    image_encoder: Path
    pictures: Path
    out: Path
    steps: int = 1_000_000
    batch: int = 8
    size: int = 1024
    plus: bool = False
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    mixed_precision: str = "no"
    save_every: int = 5000
    seed: int = 0


class TrainableAdapter(nn.Module):
    """The frozen UNet with the trained parts in it; one forward, so that one wrapper fits all."""

    def __init__(self, unet: Any, projection: nn.Module, tokens: int) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(requires_grad=False)
        self.projection = projection
        self.attentions = decoupled.attach(unet, tokens)

    def forward(
        self, latents: Tensor, steps: Tensor, context: Tensor, image: Tensor, added: dict[str, Any]
    ) -> Tensor:
        """Predict, `(n, 4, h, w)`; `context` is the text's, `image` the encoder's features."""
        joined = torch.cat([context, self.projection(image).to(context.dtype)], dim=1)
        sample: Tensor = self.unet(latents, steps, joined, added_cond_kwargs=added).sample
        return sample

    def trained(self) -> list[nn.Parameter]:
        """List what learns."""
        return [*self.projection.parameters(), *self.attentions.parameters()]


class FrozenModel:
    """All that is frozen beside the UNet: text encoders, VAE, image encoder, noise schedule."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
        self.dtype = kinds.get(accelerator.mixed_precision, torch.float32)
        self.device = accelerator.device
        self.pipeline = StableDiffusionXLPipeline.from_pretrained(
            recipe.base, torch_dtype=self.dtype
        ).to(self.device)
        # SDXL's own VAE makes black pictures in half precision.
        self.pipeline.vae.to(torch.float32)
        self.image_encoder = CLIPVisionModelWithProjection.from_pretrained(
            recipe.image_encoder, dtype=self.dtype
        ).to(self.device)
        self.schedule = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        for network in (
            self.pipeline.vae,
            self.pipeline.text_encoder,
            self.pipeline.text_encoder_2,
            self.image_encoder,
        ):
            network.requires_grad_(requires_grad=False)
        self.plus = recipe.plus

    def adapter(self) -> TrainableAdapter:
        """Make the trained parts fit this base and image encoder; they learn in float32."""
        unet, seen = self.pipeline.unet, self.image_encoder.config
        context = unet.config.cross_attention_dim
        if self.plus:
            width = min(RESAMPLER, seen.hidden_size)
            projection: nn.Module = Resampler(
                seen.hidden_size, context, PLUS_TOKENS, width, max(1, width // HEAD_DIM)
            )
            adapter = TrainableAdapter(unet, projection, PLUS_TOKENS)
        else:
            projection = LinearProjection(seen.projection_dim, context, IMAGE_TOKENS)
            adapter = TrainableAdapter(unet, projection, IMAGE_TOKENS)
        for part in (adapter.projection, adapter.attentions):
            part.to(self.device, torch.float32)
        return adapter

    @torch.no_grad()
    def see(self, prompt: Tensor, dropped: Tensor) -> Tensor:
        """Encode image prompts; a dropped one is zeros, for Plus the features of zeros."""
        prompt = prompt.to(self.device, self.dtype)
        if self.plus:
            prompt = prompt * ~dropped[:, None, None, None]
            seen: Tensor = self.image_encoder(prompt, output_hidden_states=True).hidden_states[-2]
            return seen.float()
        embeddings: Tensor = self.image_encoder(prompt).image_embeds
        return embeddings.float() * ~dropped[:, None]

    @torch.no_grad()
    def loss(self, adapter: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of the noise (or velocity) on one batch."""
        n = len(batch.texts)
        drop = torch.rand(n)
        no_text = (drop < DROP) | ((drop >= 2 * DROP) & (drop < 3 * DROP))
        no_image = (drop >= DROP) & (drop < 3 * DROP)
        texts = ["" if gone else text for gone, text in zip(no_text, batch.texts, strict=True)]
        context, _, pooled, _ = self.pipeline.encode_prompt(
            texts, device=self.device, do_classifier_free_guidance=False
        )
        vae = self.pipeline.vae
        codes = vae.encode(batch.pixels.to(self.device)).latent_dist.sample()
        latents = (codes * vae.config.scaling_factor).to(self.dtype)
        noise = torch.randn_like(latents)
        last = self.schedule.config.num_train_timesteps
        steps = torch.randint(last, (n,), device=self.device)
        noised = self.schedule.add_noise(latents, noise, steps)
        velocity = self.schedule.config.prediction_type == "v_prediction"
        target = self.schedule.get_velocity(latents, noise, steps) if velocity else noise
        added = {"text_embeds": pooled, "time_ids": batch.time_ids.to(self.device, self.dtype)}
        image = self.see(batch.prompt, no_image.to(self.device))
        with torch.enable_grad():
            predicted = adapter(noised, steps, context, image, added)
            return functional.mse_loss(predicted.float(), target.float())


def train(recipe: Recipe) -> Path:
    """Train for `recipe.steps` steps, resuming from the latest checkpoint; return the file."""
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        project_config=ProjectConfiguration(
            str(recipe.out), automatic_checkpoint_naming=True, total_limit=2
        ),
    )
    set_seed(recipe.seed + accelerator.process_index)
    frozen = FrozenModel(recipe, accelerator)
    adapter = frozen.adapter()
    optimizer = torch.optim.AdamW(
        adapter.trained(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    pictures: Any = DataLoader(
        Folder(recipe.pictures, recipe.size), recipe.batch, shuffle=True, collate_fn=collate
    )
    wrapped, optimizer, pictures = accelerator.prepare(adapter, optimizer, pictures)
    done = _Steps()
    accelerator.register_for_checkpointing(done)
    _checkpoint_trained_only(accelerator, adapter)
    kept = (recipe.out / "checkpoints").glob("checkpoint_*")
    numbers = [int(path.name.removeprefix("checkpoint_")) for path in kept]
    if numbers:
        accelerator.load_state()
        accelerator.project_configuration.iteration = max(numbers) + 1
    bar = tqdm(total=recipe.steps, initial=done.number, disable=not accelerator.is_main_process)
    while done.number < recipe.steps:
        for batch in pictures:
            loss = frozen.loss(wrapped, batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(adapter.trained(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done.number += 1
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            bar.update()
            if done.number % recipe.save_every == 0:
                accelerator.save_state()
            if done.number >= recipe.steps:
                break
    bar.close()
    file = recipe.out / (layout.PLUS_FILE if recipe.plus else layout.BASE_FILE)
    if accelerator.is_main_process:
        weights = decoupled.public_weights(adapter.projection, adapter.attentions)
        save_file({key: w.half().contiguous().cpu() for key, w in weights.items()}, file)
    return file


def _checkpoint_trained_only(accelerator: Accelerator, adapter: TrainableAdapter) -> None:
    """Keep the frozen UNet, gigabytes of it, out of every checkpoint."""
    parts = nn.ModuleDict({"projection": adapter.projection, "attentions": adapter.attentions})

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        del models
        save_file(parts.state_dict(), Path(folder) / TRAINED)
        weights.clear()

    def load(models: list[nn.Module], folder: str) -> None:
        parts.load_state_dict(load_file(Path(folder) / TRAINED))
        models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


class _Steps:
    """The number of steps done, as accelerate keeps it in a checkpoint."""

    def __init__(self) -> None:
        self.number = 0

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


def main() -> None:
    """Read a recipe from the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base", "image-encoder", "pictures", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--size", type=int, default=Recipe.size)
    parser.add_argument("--plus", action="store_true")
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--weight-decay", type=float, default=Recipe.weight_decay)
    parser.add_argument("--mixed-precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--save-every", type=int, default=Recipe.save_every)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    print(train(Recipe(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
