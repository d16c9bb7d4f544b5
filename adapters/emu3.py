"""Emu3-Gen (BAAI, 2024): a Llama that reads a prompt and writes the 90 by 90 codes of an image, line by line.

The checkpoint is that in transformers' own layout. The distribution is that of the authors' own script,
`image_generation.py` of github.com/baaivision/Emu3:

* behind the prompt stand words that ask for quality, then the height and width in codes;
* the unconditional model reads words that name faults in place of the prompt;
* guidance is 3, and the 2048 most likely codes are kept. Codes alone may be drawn, and the end of each line is given:
  it is read but not drawn, so it is none of the tokens. What closes an image would come after all of them.

transformers' documentation differs: there the unconditional model reads no size, and the quality is left to the user.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.transformers_generator import TransformersGenerator, byte_tokenizer
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.sampling import Sampling

BOS, PAD, EOL = "<|extra_203|>", "<|endoftext|>", "<|extra_200|>"
"""Begin of the text, padding, end of a line of codes."""
BOI, IMAGE = "<|image start|>", "<|image token|>"
"""Between them stands the size; the codes follow."""
QUALITY = " masterpiece, film grained, best quality."
FAULTS = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)


class Drawing(nn.Module):
    """The parts of Emu3 that write; what turns images into codes and back is left out."""

    def __init__(self, network: Any) -> None:
        """
        Args:
            network: transformers' `Emu3ForConditionalGeneration`.
        """
        super().__init__()
        self.text_model, self.lm_head = network.model.text_model, network.lm_head
        self.config = network.config.text_config

    def get_input_embeddings(self) -> Any:
        return self.text_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def get_decoder(self) -> Any:
        return self.text_model


class Emu3Gen(TransformersGenerator):
    """Emu3-Gen, 8.5 billion weights: `transformers.Emu3ForConditionalGeneration`, all frozen but `Drawing`."""

    spec = GeneratorSpec(
        "emu3.gen", 8100, 32768, 720, "Apache-2.0", "arXiv:2409.18869", Sampling(guidance=3.0, top_k=2048)
    )
    hub = "BAAI/Emu3-Gen-hf"
    decoded_at_once = 4
    architecture, model_type = "Emu3ForConditionalGeneration", "emu3"

    def _take(self, network: Any, tokenizer: Any, device: str) -> Self:
        self.network = network.to(device).eval().requires_grad_(False)
        self.module = Drawing(network).requires_grad_(True)
        for layer in network.model.text_model.layers:  # a policy has none, and recomputing layers refuses it
            layer.dropout.p = layer.self_attn.attention_dropout = 0.0
        self.tokenizer, self.vq = tokenizer, network.model.vqmodel
        self.bos, self.boi, self.image, self.line_end = self.ids_of((BOS, BOI, IMAGE, EOL))
        codes = self.vq.config.codebook_size
        self.first_code, last = self.ids_of(f"<|visual token {code:06d}|>" for code in (0, codes - 1))
        if last - self.first_code != codes - 1:
            raise ValueError(
                f"{self.spec.name} needs the ids of its {codes} codes in one row, got {self.first_code} for the first "
                f"and {last} for the last; take the published tokenizer."
            )
        self.line = self.spec.image_size // self.vq.spatial_scale_factor
        self.spec = replace(self.spec, tokens=self.line**2, codes=codes)
        return self

    @classmethod
    def tiny(cls) -> Self:
        return cls.of(random_network(), tiny_tokenizer(), image_size=6)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the prompt, the quality and the size; raises ValueError for a prompt that spells a control token."""
        return self._asked(prompt + QUALITY)

    def null_ids(self, prompt: str) -> list[int]:
        return self._asked(FAULTS)

    def _asked(self, text: str) -> list[int]:
        return [self.bos, *self.words(text), self.boi, *self.words(f"{self.line}*{self.line}"), self.image]

    def _levels(self, tokens: Tensor) -> Tensor:
        """See `Generator._levels`; they are cut off, not rounded, as the authors do."""
        pixels = self.vq.decode(tokens.unflatten(1, (self.line, self.line))).float()  # -1..1
        return ((pixels + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)  # type: ignore[no-any-return]

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; the codes to come are those of an even grey."""
        size = self.spec.image_size
        with torch.no_grad():
            pixels = torch.zeros([1, 3, size, size], device=self.device, dtype=self.vq.dtype)
            (grey,) = self.vq.encode(pixels, image_sizes=[(size, size)]).image_tokens  # [side, side]
        ahead = grey.flatten().expand(len(tokens), -1)[:, tokens.shape[1] :]
        return self.decode(torch.cat([tokens.to(self.device), ahead], 1))


def random_network(*, layers: int = 2, width: int = 32, codes: int = 32) -> Any:
    """A random `Emu3ForConditionalGeneration` for `tiny_tokenizer` of as many codes, each 2 by 2 pixels."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    vocabulary = tiny_tokenizer(codes).get_vocab()
    config = Emu3Config(
        text_config={
            **{"vocab_size": len(vocabulary), "hidden_size": width, "intermediate_size": 2 * width},
            **{"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2},
            **{"bos_token_id": vocabulary[BOS], "eos_token_id": None, "pad_token_id": vocabulary[PAD]},
        },
        vq_config={
            **{"codebook_size": codes, "base_channels": 32, "channel_multiplier": (1, 1), "num_res_blocks": 1},
            **{"attn_resolutions": (), "hidden_size": 32},
        },
        vocabulary_map=vocabulary,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Emu3ForConditionalGeneration(config)
        for weight in network.model.text_model.parameters():
            if weight.dim() > 1:  # the usual init is so small that a prompt would hardly matter
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        nn.init.normal_(network.lm_head.weight, std=2 * width**-0.5)
        nn.init.normal_(network.model.vqmodel.quantize.embedding.weight)
    return network


def tiny_tokenizer(codes: int = 32) -> Any:
    """A tokenizer that reads bytes, with the control tokens and codes of Emu3."""
    visual = (f"<|visual token {code:06d}|>" for code in range(codes))
    return byte_tokenizer(BOS, PAD, "<image>", BOI, IMAGE, EOL, *visual)
