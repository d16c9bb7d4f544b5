"""Questions that judges are asked about two images, word by word as their authors published them.

The answers are those that say that the first image is better, that the second is, and, if there is one, that both are
equally good.
"""

from __future__ import annotations

from rwk.adapters.questions import Question

UNIFIED_REWARD = (
    "You are given a text caption and two generated images based on that caption. Your task is to evaluate and compare "
    "these images based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well each image aligns with the provided caption. Consider the accuracy "
    "of depicted objects, their relationships, and attributes as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of each image, including clarity, detail preservation, color "
    "accuracy, and overall aesthetic appeal.\n"
    "Compare both images using the above criteria and select the one that better aligns with the caption while "
    "exhibiting superior visual quality.\n"
    'Provide a clear conclusion such as "Image 1 is better.", "Image 2 is better." and "Both images are equally '
    'good."\n'
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
UNIFIED_REWARD_AXES = (
    "You are presented with two generated images (Image 1 and Image 2) along with a shared text caption. Your task is "
    "to comparatively evaluate the two images across three specific dimensions:\n\n"
    "- Alignment Score: How well each image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent and visually coherent each image is (absence of visual glitches, "
    "distorted objects, etc.).\n"
    "- Style Score: How aesthetically appealing each image is, regardless of caption accuracy.\n\n"
    "For each dimension, you must assign a relative score to Image 1 and Image 2, such that:\n"
    "- Each score is a float between 0 and 1 (inclusive).\n"
    "- The scores for Image 1 and Image 2 must sum to exactly 1.0 for each dimension.\n"
    "- The higher the score, the better that image is in the corresponding dimension *relative to the other*.\n\n"
    "This format emphasizes comparative quality rather than absolute evaluation.\n\n"
    "Please provide your evaluation in the format below:\n\n"
    "Alignment Score:\n Image 1: X\n Image 2: Y\n\n"
    "Coherence Score:\n Image 1: X\n Image 2: Y\n\n"
    "Style Score:\n Image 1: X\n Image 2: Y\n\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
UNIFIED_REWARD_THINK = (
    "Given a caption and two images generated based on this caption, please analyze in detail the two provided images. "
    "Evaluate them on various dimensions such as semantic consistency (how closely the image content aligns with the "
    "caption), aesthetics (composition, color usage, artistic expression), authenticity (realism and attention to "
    "detail), and any other factors you deem relevant. For each evaluation dimension, provide a score between 1-10 for "
    "both images (e.g., Image 1: 8/10, Image 2: 6/10) and provide a concise rationale for the score. Calculate the "
    "total score for each image by summing all dimension scores. Use a chain-of-thought process to detail your "
    "reasoning steps, and enclose all your detailed reasoning within <think> and </think> tags. Then, in the <answer> "
    "tag, output exactly one of the following strings: 'Image 1 is better' or 'Image 2 is better' based on the total "
    "scores. No additional text is allowed in the <answer> section.\n\n"
    "Example output format:\n"
    "<think>\n"
    "1. Semantic consistency: Image 1 (9/10) - ...; Image 2 (7/10) - ...\n"
    "2. Aesthetics: Image 2 (8/10) - ...; Image 1 (8/10) - ...\n"
    "3. Authenticity: Image 1 (8/10) - ...; Image 2 (5/10) - ...\n"
    "[Additional dimensions if any]: Image 2 (8/10) - ...; Image 1 (6/10) - ...\n"
    "Total score:\n"
    "Image 1: 9+8+8+6=31\n"
    "Image 2: 7+8+5+8=28\n"
    "</think>\n"
    "<answer>Image 1 is better</answer>\n"
    "**Note: In the example above, scores and the final answer are placeholders meant only to demonstrate the format. "
    "Your actual evaluation should be based on the quality of two given images.**\n\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
PAIR_QUESTIONS = {
    "match": Question(
        (
            'Which of these two images shows better what this text says: "{prompt}"? Answer with one digit, 1 for the '
            "first image or 2 for the second.",
        ),
        ("1", "2"),
        "rwk.adapters.pair_questions",
    ),
    "quality": Question(
        (
            "Which of these two images is of better quality and looks better? Answer with one digit, 1 for the first "
            "image or 2 for the second.",
        ),
        ("1", "2"),
        "rwk.adapters.pair_questions",
    ),
    "unifiedreward": Question(
        (UNIFIED_REWARD,),
        ("Image 1", "Image 2", "Both"),
        "arXiv:2503.05236; CodeGoat24/UnifiedReward at ff6f520: qwen_pair_rank_image_generation.py",
    ),
}
"""Questions by name whose answers are read off one forward pass."""
