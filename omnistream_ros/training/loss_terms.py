# SPDX-License-Identifier: Apache-2.0
"""Names of the geometric terms of the loss: fields of `losses.LossWeights`, columns of the curve.

By themselves, because a command line that offers them must not import torch.
"""

GEOMETRIC_TERMS = (
    "log_l1",
    "scale_invariant",
    "gradient",
    "confidence",
    "rays",
    "translation",
    "rotation",
    "field_of_view",
)
