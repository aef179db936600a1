"""Cases of the public set that need branches of the formats that are not here yet; strict: who mends one deletes it."""

from __future__ import annotations

NOT_YET: dict[str, str] = {
    "lora_dialect": "LoRA dialects are not read yet",
    "lora_other_width": "LoRA dialects are not read yet",
    "lora_some_do_not_fit": "LoRA dialects are not read yet",
    "lora_no_up": "LoRA dialects are not read yet",
    "lora_no_down": "LoRA dialects are not read yet",
    "lora_ranks_differ": "LoRA dialects are not read yet",
    "lora_for_flux": "LoRA dialects are not read yet",
    "lora_for_sdxl": "LoRA dialects are not read yet",
    "lora_nan": "LoRA dialects are not read yet",
    "lora_alpha_vector": "LoRA dialects are not read yet",
    "lora_alpha_nan": "LoRA dialects are not read yet",
    "lora_two_names_one_layer": "LoRA dialects are not read yet",
    "lora_oft": "LoRA dialects are not read yet",
    "lora_diff_shape": "LoRA dialects are not read yet",
    "lora_unknown_key_beside_good": "LoRA dialects are not read yet",
    "lora_empty": "LoRA dialects are not read yet",
}
"""Kinds and names of cases that fail -> why."""
