"""torchvision beside a CPU-only torch, for peers that need no more of it than its Python side.

torchvision describes two operators of its compiled library when it is imported, and fails where
that was built for another torch. Import this first: it declares both. What is missing then is box
suppression and torchvision's own decoders; resizing runs on torch's kernels and is the real one.
"""

from __future__ import annotations

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _declared.define(_name + _BOXES)
