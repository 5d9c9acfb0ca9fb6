"""Random numbers that depend on nothing but a key: not on the processes, the micro-batch, or what was drawn before."""

import torch

from road_ds.common.digest import text_sha256


def keyed(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator of random numbers on a device, the same for the same key on the same kind of device."""
    seed = int(text_sha256("/".join(map(str, key)))[:16], 16)
    return torch.Generator(device).manual_seed(seed)
