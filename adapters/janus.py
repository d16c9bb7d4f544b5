"""Janus and Janus-Pro (DeepSeek, 2024 and 2025): a Llama that reads a prompt and writes the 576 codes of an image.

The checkpoints are those in transformers' own layout. The distribution is that of the authors' own script,
`generation_inference.py` of github.com/deepseek-ai/Janus:

* the prompt stands in the chat template of the model card, between the begin of the text and the begin of an image;
* the unconditional model reads as many ids, of which all but these two are padding, which it sees and counts;
* codes have an embedding and a head of their own, guidance is 5, the temperature 1, and no code is left out.

transformers' own `generate` gives the same tokens where it is greedy. Where it samples it keeps the 50 most likely
codes alone, unless told `top_k=0`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.transformers_generator import TransformersGenerator, byte_tokenizer
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.sampling import Sampling

BOS, PAD, BOI = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
"""Begin of the text, padding, begin of an image."""
LICENCE = "DeepSeek Model License"


class Drawing(nn.Module):
    """The parts of Janus that write codes; what reads images, writes text or turns codes into pixels is left out."""

    def __init__(self, model: Any) -> None:
        """
        Args:
            model: transformers' `JanusModel`.
        """
        super().__init__()
        self.language_model, self.config = model.language_model, model.language_model.config
        self.generation_embeddings = model.generation_embeddings
        self.generation_aligner = model.generation_aligner
        self.generation_head = model.generation_head

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_decoder(self) -> Any:
        return self.language_model


class JanusPro(TransformersGenerator):
    """Janus-Pro 1B: `transformers.JanusForConditionalGeneration`, of which all is frozen but `Drawing`."""

    spec = GeneratorSpec("janus.pro_1b", 576, 16384, 384, LICENCE, "arXiv:2501.17811", Sampling(guidance=5.0))
    hub = "deepseek-community/Janus-Pro-1B"
    architecture, model_type = "JanusForConditionalGeneration", "janus"
    roles: ClassVar[tuple[str, str]] = ("<|User|>", "<|Assistant|>")

    def _take(self, network: Any, tokenizer: Any, device: str) -> Self:
        self.network = network.to(device).eval().requires_grad_(False)
        self.module = Drawing(network.model).requires_grad_(True)
        self.tokenizer = tokenizer
        self.bos, self.pad, self.boi = self.ids_of((BOS, PAD, BOI))
        vq = network.config.vq_config
        self.spec = replace(
            self.spec,
            tokens=vq.num_patches**2,
            codes=vq.num_embeddings,
            image_size=vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1),
        )
        return self

    @classmethod
    def tiny(cls) -> Self:
        return cls.of(random_network(), tiny_tokenizer())

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the prompt in its chat template; raises ValueError for one that spells out a control token."""
        text, (user, assistant) = prompt.strip(), self.roles
        self.words(text)
        chat = f"{user}: {text}\n\n{assistant}:" if text else f"{user}:{assistant}:"
        return [self.bos, *self.tokenizer.encode(chat, add_special_tokens=False), self.boi]

    def null_ids(self, prompt: str) -> list[int]:
        return [self.bos, *[self.pad] * (len(self.prompt_ids(prompt)) - 2), self.boi]

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.causal_lm.generation_aligner(self.causal_lm.generation_embeddings(codes))  # type: ignore[no-any-return]

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.causal_lm.generation_head(hidden)  # type: ignore[no-any-return]

    def code_embeddings(self) -> Tensor:
        """See `Generator.code_embeddings`; codes are decoded at length 1."""
        return nn.functional.normalize(self.network.model.vqmodel.quantize.embedding.weight.detach(), dim=1)

    def _levels(self, tokens: Tensor) -> Tensor:
        """See `Generator._levels`; they are cut off, not rounded, as the authors do."""
        pixels = self.network.model.vqmodel.decode(tokens).float()  # -1..1
        return ((pixels + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)  # type: ignore[no-any-return]

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; the codes to come are those of an even grey."""
        ahead = self._grey().expand(len(tokens), -1)[:, tokens.shape[1] :]
        return self.decode(torch.cat([tokens.to(self.device), ahead], 1))

    def _grey(self) -> Tensor:
        """[1, L] codes of a grey image, the nearest by angle."""
        vq, size = self.network.model.vqmodel, self.spec.image_size
        with torch.no_grad():
            grey = torch.zeros([1, 3, size, size], device=self.device, dtype=vq.dtype)
            found = vq.quant_conv(vq.encoder(grey)).flatten(2).transpose(1, 2)  # [1, L, E]
            return (found @ self.code_embeddings().T).argmax(2)  # type: ignore[no-any-return]


class JanusPro7B(JanusPro):
    """Janus-Pro 7B, otherwise as `janus.pro_1b`."""

    spec = replace(JanusPro.spec, name="janus.pro_7b")
    hub = "deepseek-community/Janus-Pro-7B"


class Janus(JanusPro):
    """Janus 1.3B, the first version, which names the roles of its chat template otherwise than `janus.pro_1b`."""

    spec = replace(JanusPro.spec, name="janus.v1_3b", source="arXiv:2410.13848")
    hub = "deepseek-community/Janus-1.3B"
    roles = ("User", "Assistant")


def random_network(
    *,
    layers: int = 2,
    width: int = 32,
    inner: int = 0,
    codes: int = 32,
    side: int = 4,
    words: int = 0,
    tied: bool = True,
) -> Any:
    """A random `JanusForConditionalGeneration` for `tiny_tokenizer` that draws side x side codes.

    Args:
        inner: width inside the feed-forward parts; by default 8/3 of the width.
        words: size of the vocabulary; by default that of the tokenizer.
        tied: whether the head of words has the weights of their embedding, as transformers has it by default; the
            published checkpoints have a head of its own.
    """
    from transformers import GenerationConfig, JanusConfig, JanusForConditionalGeneration, LlamaConfig

    ids = tiny_tokenizer().get_vocab()
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=words or len(ids),
            hidden_size=width,
            intermediate_size=inner or width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=max(2, width // 64),
            bos_token_id=ids[BOS],
            eos_token_id=None,
            pad_token_id=ids[PAD],
        ),
        vision_config={
            **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": width},
            **{"image_size": 2 * side, "patch_size": 2, "num_image_tokens": side**2},
        },
        vq_config={
            **{"num_embeddings": codes, "latent_channels": 32, "base_channels": 32, "channel_multiplier": (1, 1)},
            **{"num_res_blocks": 1, "projection_dim": width, "image_token_embed_dim": width},
        },
        image_token_id=ids["<image_placeholder>"],
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = JanusForConditionalGeneration(config)
        for weight in network.parameters():
            if weight.dim() > 1:  # the usual init is so small that a prompt would hardly matter
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    network.generation_config = GenerationConfig(  # with which transformers' own `generate` draws too
        bos_token_id=ids[BOS],
        pad_token_id=ids[PAD],
        guidance_scale=5.0,
        generation_kwargs={"boi_token_id": ids[BOI]},
    )
    return network


def tiny_tokenizer() -> Any:
    """A tokenizer that reads bytes, with the control tokens of Janus."""
    return byte_tokenizer(BOS, PAD, BOI, "<image_placeholder>", *JanusPro.roles)
