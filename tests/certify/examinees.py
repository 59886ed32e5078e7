"""What the examined complete here."""

from __future__ import annotations

PROMPTS = ["to be or not", "that is the question", "once more"]
