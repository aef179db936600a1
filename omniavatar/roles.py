"""The names of roles: which network a unit means where a video is made by several transformers."""

from __future__ import annotations


def companion_of(role: str, denoiser: str, expert: str) -> str:
    """The role of the network that goes with one expert as `role` goes with the first one, the `denoiser`.

    An expert whose name is the denoiser's with something behind it gives its companions the same ending: `vace` belongs
    to `dit` and `vace2` to `dit2`. Others give their whole name: `vace.refiner` belongs to `refiner`.
    """
    if expert == denoiser:
        return role
    if expert.startswith(denoiser):
        return role + expert.removeprefix(denoiser)
    return expert if role == denoiser else f"{role}.{expert}"
