"""Lets torchvision be imported beside a torch that its compiled operators were not built for.

As it is imported, torchvision says more about its operators, which fails where their library could
not be loaded. They are declared here then, for none of them has a part in resizing, which runs on
torch's own kernels.
"""

import torch

POOLINGS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
OPERATORS = (
    *("nms", "qnms", "qroi_align"),
    *POOLINGS,
    *(f"_{name}_backward" for name in POOLINGS),
)

try:
    import torchvision
except RuntimeError:  # "operator torchvision::nms does not exist"
    # Declarations last as long as this object.
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        _library.define(f"{name}(Tensor a) -> Tensor")
    import torchvision  # noqa: F401
