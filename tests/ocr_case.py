"""What was read, and prompts, on which the OCR rewards of Flow-GRPO and UniRL were run."""

from __future__ import annotations

CASES = (
    ("Welcome to NEW york", 'New York skyline with "New York" on it'),
    ("HELLO WORL", 'a card that says "Hello World!"'),
    ("", 'a sign that says "Stop"'),
    ("nothing of the kind, and much more of it than was asked for", 'a "No" on a door'),
    ("nothing of the kind, and much more of it than was asked for", 'an "Exit" on a door'),
    ("l0rem 1psum", 'a page with "lorem ipsum", and "dolor"'),
    ("café", 'a menu that reads "CAFÉ au lait"'),
    ("abc", 'the letters "c b a"'),
    ("25 % off", 'a poster with "25% OFF today"'),
)
SINGLE = (
    ("open", "a shop sign that says 'Open late'"),
    ("dont stop", "the words 'STOP here' in red"),
)
"""With single quotes, of which Flow-GRPO does not know."""
