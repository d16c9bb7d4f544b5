"""Ratios of rwk's rollout and statistics to plain transformers, each pair measured in turns in one run.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py                          # the built-in world's size
    python benchmarks/rollout.py --device cuda --dtype bfloat16 --layers 24 --width 1024 --tokens 576 --codes 16384

Sampling is compared with `generate`, which reads every row's prompt and grows its cache, on the same model, rows and
number of tokens; guided, with its `guidance_scale`. Statistics are compared with a padded forward pass over the whole
vocabulary. A ratio above 1 says that rwk is faster. State the machine with the numbers: a shared one is noisy.
"""

from __future__ import annotations

import argparse
import statistics as stats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.generator import GeneratorSpec, Sampling
from rwk.policy_opt.rollout import CausalGenerator

TEXT = 256
"""Text tokens in the vocabulary, after the codes."""


class Measured(CausalGenerator):
    """A Llama of the given size with random weights; a prompt is a text token for each letter, and one before."""

    def __init__(self, options: argparse.Namespace) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        self.spec = GeneratorSpec("measured", options.tokens, options.codes, options.tokens, "n/a", "random")
        config = LlamaConfig(
            vocab_size=options.codes + TEXT,
            hidden_size=options.width,
            intermediate_size=options.width * 8 // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=max(1, options.width // 32),
            max_position_embeddings=options.tokens + 1024,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        self.module: Any = LlamaForCausalLM(config).eval().to(options.device, getattr(torch, options.dtype))

    def prompt_ids(self, prompt: str) -> list[int]:
        return [self.spec.codes, *(self.spec.codes + 2 + ord(letter) % (TEXT - 2) for letter in prompt)]

    def null_ids(self, prompt: str) -> list[int]:
        return [self.spec.codes, self.spec.codes + 1]

    def decode(self, tokens: Tensor) -> list[Image.Image]:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def from_folder(cls, folder: Path, *, device: str = "cpu") -> Measured:
        raise NotImplementedError

    @classmethod
    def tiny(cls) -> Measured:
        raise NotImplementedError


def padded(generator: Measured, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids [B, P], padded on the left as `generate` wants them, and their mask."""
    rows = [generator.prompt_ids(prompt) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=generator.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=generator.device)
    return ids, mask


def plain_sample(generator: Measured, prompts: list[str], guidance: float) -> None:
    """As many tokens for as many rows by transformers' `generate`."""
    ids, mask = padded(generator, prompts)
    options: dict[str, Any] = {}
    if guidance != 1:
        null = torch.tensor([generator.null_ids(prompt) for prompt in prompts], device=ids.device)
        options = {"guidance_scale": guidance, "negative_prompt_ids": null}
    count = generator.spec.tokens
    generator.module.generate(
        ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=True, top_k=0, **options
    )


def plain_statistics(generator: Measured, prompts: list[str], tokens: Tensor) -> None:
    """Log-probabilities and entropy over the whole vocabulary, and the gradient."""
    ids, mask = padded(generator, prompts)
    full = torch.cat([ids, tokens], 1)
    mask = torch.cat([mask, torch.ones_like(tokens)], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = generator.module(input_ids=full, attention_mask=mask, position_ids=places).logits[:, ids.shape[1] - 1 : -1]
    logp = logits.float().log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    (logp.gather(2, tokens[..., None]).mean() + 0.01 * entropy.mean()).backward()


def seconds(run: Callable[[], object], device: str) -> float:
    """How long the run took, the device's work included."""
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def measure(name: str, ours: Callable[[], object], plain: Callable[[], object], options: argparse.Namespace) -> None:
    """Prints the median ratio of pairs, its range, and the median seconds of each."""
    ours(), plain()
    pairs = [(seconds(plain, options.device), seconds(ours, options.device)) for _ in range(options.rounds)]
    ratios = sorted(slow / fast for slow, fast in pairs)
    slow, fast = (stats.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{name:40} {stats.median(ratios):5.2f} {ratios[0]:6.2f}..{ratios[-1]:.2f} {slow:9.3f} {fast:9.3f}", flush=True
    )


def main() -> None:
    """Measures every pair and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"layers": 6, "width": 192, "codes": 512, "tokens": 64, "prompts": 8, "group": 8, "rounds": 5}
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    generator = Measured(options)
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {vars(options)}")
    print(f"{'pair':40} {'ratio':>5} {'range':>12} {'plain s':>9} {'rwk s':>9}")
    for name, letters in (("", [15]), (", unequal prompts", [8, 15, 22]), (", prompts of 200", [200])):
        prompts = ["x" * letters[i % len(letters)] + chr(97 + i) for i in range(options.prompts)]
        rows = [prompt for prompt in prompts for _ in range(options.group)]
        for guidance in (1.0, 3.0):
            recipe = Sampling(guidance=guidance)

            def ours(prompts: list[str] = prompts, recipe: Sampling = recipe) -> object:
                return generator.sample(prompts, per_prompt=options.group, seed=0, sampling=recipe)

            def plain(rows: list[str] = rows, guidance: float = guidance) -> None:
                plain_sample(generator, rows, guidance)

            measure(f"sample, guidance {guidance:g}{name}", ours, plain, options)
        drawn = generator.sample(prompts, per_prompt=options.group, seed=0)

        def ours_trained(drawn: Any = drawn) -> None:
            result = generator.statistics(drawn)
            (result.logprobs.mean() + 0.01 * result.entropy.mean()).backward()

        def plain_trained(rows: list[str] = rows, drawn: Any = drawn) -> None:
            plain_statistics(generator, rows, drawn.tokens)

        measure(f"statistics and gradient{name}", ours_trained, plain_trained, options)


if __name__ == "__main__":
    main()
