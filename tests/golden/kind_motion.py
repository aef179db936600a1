"""Golden kind `motion`: speed control, the change of the modulation and one transformer call, through the unit."""

from __future__ import annotations

from einops import rearrange
from omniavatar_motion.unit import Motion

from tests.golden.calls import one_call
from tests.golden.cases import Case, group, kind
from tests.golden.files import Networks, networks_of


@kind("motion")
def run_motion(case: Case) -> None:
    networks: Networks = {}
    for role in case.config["components"]:
        networks |= networks_of(case, weights=group(case.weights, role), **{role: case.config[role]})
    without = one_call(case, [Motion()], networks)
    case.compare("noise_pred_without", without.output, rtol=2e-5)
    for index, bucket in enumerate(case.inputs["motion_bucket_id"].tolist()):
        forward = one_call(case, [Motion()], networks, inputs={"motion_bucket_id": bucket})
        case.compare(f"motion_mod_{index}", rearrange(forward["motion.modulation"], "b m d -> b (m d)"), rtol=2e-5)
        case.compare(f"noise_pred_{index}", forward.output, rtol=2e-5)
