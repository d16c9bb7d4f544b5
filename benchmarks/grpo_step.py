"""Time and peak memory of one GRPO step on a random Janus, against a step as T2I-R1's trainer takes it.

    OMP_NUM_THREADS=2 python benchmarks/grpo_step.py
    OMP_NUM_THREADS=2 python benchmarks/grpo_step.py --tokens 64 --layers 4 --rounds 1     # about a minute
    OMP_NUM_THREADS=2 python benchmarks/grpo_step.py --lora-rank 0                         # all weights are trained

A step draws a group for one prompt, takes the log-probabilities of policy and reference, and updates the weights by
AdamW. Rewards are random numbers, as their models would cost both the same. Both compute the layers again in the
backward pass. T2I-R1 draws by the loop of Janus' authors (a prompt read for every row, a cache that grows), asks the
model for the logits of its words at every place and for the states of all layers, of which the last are read, trains
all weights under the conditional distribution alone, and keeps a whole second model as reference. rwk trains under the
guided distribution, from which the tokens were drawn, so both branches go through the model; by default it trains LoRA
adapters, without which the model is its own reference.

Every step runs in a process of its own, in turns. Memory is the peak above what the libraries take.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import runpy
import statistics as stats
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwk.adapters.janus import JanusPro, random_network, tiny_tokenizer
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.policy import trainable

SIZES = {"layers": 8, "width": 512, "codes": 16384, "tokens": 576, "words": 102400, "group": 8, "prompt": 256}
"""Of the model, as `benchmarks/rollout.py` has it, with as many words as Janus knows; `prompt` counts its tokens."""
BETA = 0.01
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def built(options: argparse.Namespace) -> JanusPro:
    """A random Janus that computes its layers again in the backward pass."""
    side = math.isqrt(options.tokens)
    sizes = {"layers": options.layers, "width": options.width, "codes": options.codes, "words": options.words}
    generator = JanusPro.of(random_network(**sizes, side=side), tiny_tokenizer(), device=options.device)
    generator.module.train()
    generator.module.language_model.activation_checkpointing_enable()
    return generator


def loss_of(logprobs: Tensor, reference: Tensor) -> Tensor:
    """GRPO's loss, under the policy that drew, of log-probabilities [B, L], with the k3 estimate of the distance."""
    rewards = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(0)).to(logprobs.device)
    advantage = ((rewards - rewards.mean()) / (rewards.std() + 1e-4))[:, None]
    ahead = reference - logprobs
    return (BETA * (ahead.exp() - ahead - 1) - (logprobs - logprobs.detach()).exp() * advantage).mean()


def updated(parameters: Iterable[Tensor], loss: Tensor) -> None:
    """Takes one step of AdamW with those that can be trained."""
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW([value for value in parameters if value.requires_grad], lr=1e-6).step()


def rwk_step(generator: JanusPro, prompt: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of drawing and of learning, by rwk's own sampler, statistics and reference."""
    with trainable(generator, Grpo(lora_rank=options.lora_rank), keep=True) as reference:
        assert reference is not None
        clock = CLOCKS[options.clock]
        start = clock()
        rollout = generator.sample([prompt], per_prompt=options.group, seed=0)
        drawn = clock()
        with torch.no_grad():
            fixed = reference(rollout).logprobs
        updated(generator.module.parameters(), loss_of(generator.logprobs(rollout), fixed))
        return drawn - start, clock() - drawn


def t2i_r1_logprobs(network: Any, ids: Tensor, codes: Tensor) -> Tensor:
    """[B, L] conditional log-probabilities as its trainer computes them."""
    embeds = network.get_input_embeddings()(ids)
    embeds = torch.cat([embeds, network.prepare_embeddings_for_image_generation(codes)], 1)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    decoder = network.model.language_model
    found = decoder(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True, use_cache=False)
    network.lm_head(found.last_hidden_state)  # the logits of words, which nobody reads
    logits = network.model.generation_head(found.hidden_states[-1][:, -codes.shape[1] - 1 :])[:, :-1]
    rows = [row.log_softmax(1).gather(1, code[:, None])[:, 0] for row, code in zip(logits, codes, strict=True)]
    return torch.stack(rows)


def t2i_r1_step(generator: JanusPro, prompt: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of drawing and of learning, as T2I-R1's trainer does it."""
    janus_loop = runpy.run_path(str(Path(__file__).with_name("rollout.py")))["janus_loop"]
    network, reference = generator.network, built(options).network
    ids = torch.tensor([generator.prompt_ids(prompt)] * options.group, device=generator.device)
    clock = CLOCKS[options.clock]
    start = clock()
    network.eval()
    codes = janus_loop(generator, [prompt] * options.group, generator.spec.sampling.guidance)
    drawn = clock()
    network.train()
    logprobs = t2i_r1_logprobs(network, ids, codes)
    with torch.no_grad():
        fixed = t2i_r1_logprobs(reference, ids, codes)
    updated(network.parameters(), loss_of(logprobs, fixed))
    return drawn - start, clock() - drawn


def measured(way: str, options: argparse.Namespace) -> None:
    """Prints one step's seconds and peak MiB as JSON."""
    libraries = resident()
    generator = built(options)
    prompt = "a" * (options.prompt - len(generator.prompt_ids("x")) + 1)
    drawing, learning = {"rwk": rwk_step, "t2i_r1": t2i_r1_step}[way](generator, prompt, options)
    if options.device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - libraries
    else:
        peak = torch.accelerator.max_memory_allocated() / 2**20
    print(json.dumps({"drawing": drawing, "learning": learning, "seconds": drawing + learning, "MiB": peak}))


def resident() -> float:
    """MiB that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Measures the steps in turns and prints medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in SIZES.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help="cpu counts processor time, with one thread")
    parser.add_argument("--way", choices=["rwk", "t2i_r1"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measured(options.way, options)
        return
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {vars(options)}")
    found: dict[str, list[dict[str, float]]] = {"t2i_r1": [], "rwk": []}
    for _ in range(options.rounds):
        for way, rows in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    print(f"{'median':10} {'T2I-R1':>10} {'rwk':>10} {'rwk / T2I-R1':>14}")
    for key in found["rwk"][0]:
        theirs, ours = (stats.median(row[key] for row in rows) for rows in found.values())
        ratio = stats.median(b[key] / a[key] for a, b in zip(*found.values(), strict=True))
        print(f"{key:10} {theirs:10.2f} {ours:10.2f} {ratio:14.2f}")


if __name__ == "__main__":
    main()
