"""The compiled kernels (src/native): `compute_experts` and `reduce_choices` as in kernels/reference.py, and packed linears.

Quantized formats are computed in the reference's `int8` arithmetic, float formats in float32. A result depends on
its weights and its token alone, bit for bit: not on threads, on the other tokens of the step, or on how experts
share out a call.
"""

from dali.compiled import AVAILABLE, VARIABLE, enabled, use, variant, variants
from dali.kernels.native.attention import (
    ATTENTION_DTYPES,
    Attention,
    DecodingToken,
    LatentProjections,
    NormParts,
    Projections,
    Rotary,
    TokenRun,
    attend,
    attend_prompt,
)
from dali.kernels.native.cache import ExpertCache
from dali.kernels.native.decode import (
    BesideNorms,
    DecoderLayer,
    DecodingModel,
    Embeddings,
    Kept,
    LayerNorms,
    Mixer,
    Mlp,
    decode_layers,
)
from dali.kernels.native.experts import (
    ExpertRecords,
    LayerHandle,
    compute_experts,
    count_pairs,
    order_pairs,
    reduce_choices,
)
from dali.kernels.native.latent import LatentHeads
from dali.kernels.native.library import set_threads, threads
from dali.kernels.native.linear import Linear, dequantize_blocks, repack, rows_of
from dali.kernels.native.measure import read_seconds, seconds
from dali.kernels.native.recurrence import (
    CONVOLVED_DTYPES,
    SILU,
    Convolution,
    DeltaNet,
    Field,
    Mamba2,
    NativeStretch,
    RecurrentModule,
    SelectiveScan,
    ShortConvolution,
    addresses,
    convolve,
    delta_rule,
    selective_scan,
)
from dali.kernels.native.route import ROUTED_DTYPES, Router, Routing, gate_logits
from dali.kernels.native.rows import ACTIVATED_DTYPES, activate, rms_norm, sigmoid

__all__ = [
    "ACTIVATED_DTYPES",
    "ATTENTION_DTYPES",
    "AVAILABLE",
    "CONVOLVED_DTYPES",
    "ROUTED_DTYPES",
    "SILU",
    "VARIABLE",
    "Attention",
    "BesideNorms",
    "Convolution",
    "DecoderLayer",
    "DecodingModel",
    "DecodingToken",
    "DeltaNet",
    "Embeddings",
    "ExpertCache",
    "ExpertRecords",
    "Field",
    "Kept",
    "LatentHeads",
    "LatentProjections",
    "LayerHandle",
    "LayerNorms",
    "Linear",
    "Mamba2",
    "Mixer",
    "Mlp",
    "NativeStretch",
    "NormParts",
    "Projections",
    "RecurrentModule",
    "Rotary",
    "Router",
    "Routing",
    "SelectiveScan",
    "ShortConvolution",
    "TokenRun",
    "activate",
    "addresses",
    "attend",
    "attend_prompt",
    "compute_experts",
    "convolve",
    "count_pairs",
    "decode_layers",
    "delta_rule",
    "dequantize_blocks",
    "enabled",
    "gate_logits",
    "order_pairs",
    "read_seconds",
    "reduce_choices",
    "repack",
    "rms_norm",
    "rows_of",
    "seconds",
    "selective_scan",
    "set_threads",
    "sigmoid",
    "threads",
    "use",
    "variant",
    "variants",
]
