"""Random numbers that belong to an image, not to a run.

Every draw comes from a generator made of (seed, image id, stream): it is the same whatever the batch, the order,
the number of workers or of processes, and whatever was drawn before.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *parts: str) -> int:
    """A 63-bit seed that is a function of `seed` and the strings alone (sha256, so it is stable across versions)."""
    text = "\x1f".join([str(seed), *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def image_generator(seed: int, image_id: str, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one image and one purpose (`stream`, such as "apgd-mce/restart 0").

    Generators of different kinds of devices give different numbers. Draw on the CPU and move what was drawn, unless it
    is too much for that.
    """
    generator = torch.Generator(device)
    generator.manual_seed(derived_seed(seed, image_id, stream))
    return generator
