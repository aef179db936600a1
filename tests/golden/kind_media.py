"""Golden cases of the pictures: kind `image_fit`."""

from __future__ import annotations

from omniavatar.media.image import choose_size, fit_image
from tests.golden.cases import Case, kind


@kind("image_fit")
def image_fit(case: Case) -> None:
    image = case.inputs["image"].numpy()
    size = choose_size(image.shape[0], image.shape[1], case.config["sizes"])
    case.equal("size", list(size), case.take("size").tolist())
    case.equal("selected", list(size), case.config["selected"])
    case.compare("tensor", fit_image(image, size, original_rounding=True), atol=1e-5)
