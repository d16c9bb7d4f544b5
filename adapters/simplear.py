"""SimpleAR (Wang et al., 2025): a Qwen2 that reads a prompt and writes the 64 by 64 codes of an image for Cosmos.

The distribution is that of the authors' own script, `generate.py` of github.com/wdrink/SimpleAR: the prompt is made
that of a realistic image, the unconditional model reads words that name faults, and guidance is 6. They draw from the
whole vocabulary and take what is no code for the nearest; here codes alone are drawn.

Pixels come from Cosmos' decoder, which NVIDIA publishes as a TorchScript program: its tensors are read, its code is
not run. It is taken from the hub, or lies as decoder.jit beside the weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.cosmos import ORIGIN, Cosmos, CosmosConfig
from rwk.adapters.published import Origin, beside, find
from rwk.adapters.transformers_generator import TransformersGenerator, byte_tokenizer
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.sampling import Sampling

TASK, BOI = "<|t2i|>", "<|soi|>"
"""What the text begins with, begin of an image."""
LIKENESS = "A highly realistic image of "
FAULTS = (
    "An image of aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, bad "
    "eyes, bad limbs, distortion"
)


class SimpleArSft(TransformersGenerator):
    """SimpleAR of 0.5 billion weights before reinforcement learning: `transformers.Qwen2ForCausalLM`."""

    spec = GeneratorSpec("simplear.sft_0_5b", 4096, 64000, 1024, "MIT", "arXiv:2504.11455", Sampling(guidance=6.0))
    hub = "Daniel0724/SimpleAR-0.5B-SFT"
    takes_ids = True
    decoded_at_once = 2
    architecture, model_type = "Qwen2ForCausalLM", "qwen2"
    cosmos: ClassVar[CosmosConfig] = CosmosConfig()

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        """See `TransformersGenerator`; `weights` may hold decoder.jit too, or its tensors as decoder.pt."""
        name, by_hand = self.spec.name, "copy it beside the weights and name their folder as {name}@PATH"
        own = next((file for file in ("decoder.pt", ORIGIN.file) if beside(weights, file)), ORIGIN.file)
        origin = replace(ORIGIN, file=own)
        path = find(name, origin, beside(weights, own), by_hand=by_hand)
        self.vq = Cosmos.load(name, path, self.cosmos)
        super().__init__(weights=weights, revision=revision, device=device, dtype=dtype)

    @classmethod
    def origins(cls) -> tuple[Origin, ...]:
        """The published checkpoints: of the transformer, and of the decoder."""
        return Origin(cls.hub, "", cls.spec.licence, 3283 if "1.5B" in cls.hub else 1102), ORIGIN

    def _take(self, network: Any, tokenizer: Any, device: str) -> Self:
        self.network = self.module = network.to(device).eval().requires_grad_(True)
        self.vq = self.vq.to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.task, self.boi = self.ids_of((TASK, BOI))
        self.first_code, codes = len(tokenizer), self.vq.config.codes
        if network.config.vocab_size < self.first_code + codes:
            raise ValueError(
                f"{self.spec.name} needs {codes} codes behind the {self.first_code} ids of its tokenizer, got a "
                f"network of {network.config.vocab_size} ids; take the published ones."
            )
        self.side = self.spec.image_size // self.vq.config.patch
        self.spec = replace(self.spec, tokens=self.side**2, codes=codes)
        return self

    @classmethod
    def tiny(cls) -> Self:
        self = cls.__new__(cls)
        self.spec = replace(cls.spec, image_size=24)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.vq = Cosmos(CosmosConfig((4, 4, 2), 4, 8, (1, 1)))
            network = random_network()
        return self._take(network, tiny_tokenizer(), "cpu")

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        self = cls.__new__(cls)
        self.vq = Cosmos.from_folder(folder)
        TransformersGenerator.__init__(self, weights=folder, device=device)
        return self

    def _save(self, folder: Path) -> None:
        """See `Generator._save`; the decoder has files of its own beside those of transformers."""
        super()._save(folder)
        self.vq.save(folder)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the prompt in its template; raises ValueError for one that spells out a control token."""
        return [self.task, *self.words(LIKENESS + prompt), self.boi]

    def null_ids(self, prompt: str) -> list[int]:
        return [self.task, *self.words(FAULTS), self.boi]

    def _levels(self, tokens: Tensor) -> Tensor:
        return (255 * self.vq(tokens.unflatten(1, (self.side, self.side))) + 0.5).byte()  # type: ignore[no-any-return]

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; what is not yet drawn is painted grey, as no encoder tells its codes."""
        drawn, patch = tokens.shape[1], self.vq.config.patch
        whole = nn.functional.pad(tokens, (0, self.spec.tokens - drawn))
        images = self.decode(whole)
        for image in images:
            for place in range(drawn, self.spec.tokens):
                top, left = place // self.side * patch, place % self.side * patch
                image.paste((128, 128, 128), (left, top, left + patch, top + patch))
        return images


class SimpleArRl(SimpleArSft):
    """SimpleAR of 0.5 billion weights after GRPO with CLIP as reward. See `simplear.sft_0_5b`."""

    spec = replace(SimpleArSft.spec, name="simplear.rl_0_5b")
    hub = "Daniel0724/SimpleAR-0.5B-RL"


class SimpleArSftLarge(SimpleArSft):
    """SimpleAR of 1.5 billion weights before reinforcement learning. See `simplear.sft_0_5b`."""

    spec = replace(SimpleArSft.spec, name="simplear.sft_1_5b")
    hub = "Daniel0724/SimpleAR-1.5B-SFT"


class SimpleArRlLarge(SimpleArSft):
    """SimpleAR of 1.5 billion weights after GRPO with CLIP as reward. See `simplear.sft_0_5b`."""

    spec = replace(SimpleArSft.spec, name="simplear.rl_1_5b")
    hub = "Daniel0724/SimpleAR-1.5B-RL"


def random_network(*, layers: int = 2, width: int = 32, codes: int = 32) -> Any:
    """A random `Qwen2ForCausalLM` for `tiny_tokenizer` and as many codes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tiny_tokenizer()) + codes,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    network = Qwen2ForCausalLM(config)
    for weight in network.parameters():
        if weight.dim() > 1:  # the usual init is so small that a prompt would hardly matter
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return network


def tiny_tokenizer() -> Any:
    """A tokenizer that reads bytes, with the control tokens of SimpleAR."""
    return byte_tokenizer("<|endoftext|>", "<|vtokens|>", TASK, BOI)
