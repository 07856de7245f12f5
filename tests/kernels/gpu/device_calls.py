"""What the GPU's kernels are called with, as the device code declares it (src/dali/kernels/gpu/source/calls.h)."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_int64, c_uint32, c_void_p


class Matrix(Structure):
    _fields_ = (("at", c_int64), ("rows", c_int), ("columns", c_int), ("plane", c_int))


class Panel(Structure):
    _fields_ = (*((name, c_void_p) for name in ("quants", "scales", "sums", "values")), ("columns", c_int))


class Work(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("records", "begin", "pairs")),
        ("active", c_int),
        ("few_records", c_void_p * 64),
        ("few_begin", c_int * 65),
        ("few_pairs", c_int * 256),
    )


class GatherCall(Structure):
    _fields_ = (("x", c_void_p), ("panel", Panel), *((name, c_int) for name in ("tokens", "width", "dtype")))


class ExpertsCall(Structure):
    _fields_ = (
        ("work", Work),
        *((name, c_int) for name in ("top_k", "hidden", "intermediate")),
        ("outer", Panel),
        ("inner", Panel),
        ("rows", c_void_p),
        *((name, Matrix) for name in ("gate", "up", "down")),
        *((f"{name}_bias", c_int64) for name in ("gate", "up", "down")),
        ("alpha", c_float),
        ("limit", c_float),
    )


class JoinCall(Structure):
    _fields_ = (
        ("rows", c_void_p),
        ("above", c_void_p),
        ("on_cpu", c_uint32 * 8),
        *((name, c_void_p) for name in ("places", "weights", "out")),
        *((name, c_int) for name in ("tokens", "top_k", "hidden", "dtype", "weights_dtype")),
    )


class Product(Structure):
    _fields_ = (*((name, c_void_p) for name in ("out", "packed", "bias")), ("matrix", Matrix))


class LinearCall(Structure):
    _fields_ = (
        ("products", Product * 3),
        ("panel", Panel),
        *((name, c_int) for name in ("count", "tokens", "dtype")),
        ("divisor", c_float),
    )


class NormCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "out")),
        *((name, c_int) for name in ("rows", "width", "dtype")),
        ("epsilon", c_float),
    )


class NormPart(Structure):
    _fields_ = (("weight", c_void_p), ("epsilon", c_float))


class AddNormCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("residual", "part", "from_", "sum", "out")),
        ("panel", Panel),
        ("before", NormPart),
        ("after", NormPart),
        *((name, c_int) for name in ("rows", "width", "dtype")),
        ("scale", c_float),
    )


class KeptToken(Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        *((name, c_int64) for name in ("capacity", "place", "first")),
        ("row", c_int),
    )


class TurnCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("query", "keys", "values", "kept", "cos", "sin")),
        ("query_norm", NormPart),
        ("key_norm", NormPart),
        *((name, c_int) for name in ("norms_follow", "turning", "turned", "given", "rotary_dtype")),
        *((name, c_int) for name in ("tokens", "heads", "kv_heads", "key_width", "value_width", "dtype")),
        ("value_scale", c_float),
    )


class AttendCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("query", "keys", "values", "out", "kept", "sinks")),
        *((name, c_void_p) for name in ("scores", "most", "total", "sums")),
        ("panel", Panel),
        *(
            (name, c_int)
            for name in ("tokens", "parts", "heads", "kv_heads", "key_width", "value_width", "dtype")
        ),
        ("scale", c_float),
    )


class PostCall(Structure):
    _fields_ = (
        ("from_", c_void_p * 4),
        ("to", c_void_p * 4),
        ("words", c_int * 4),
        ("flag", c_void_p),
        ("number", c_uint32),
        ("base", c_void_p),
    )


class RouteCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "bias", "correction")),
        *((name, c_void_p) for name in ("products", "scores", "ranks", "weights", "ids")),
        *((name, c_int) for name in ("tokens", "hidden", "experts", "top_k", "score", "by_logit")),
        *((name, c_int) for name in ("groups", "kept_groups", "judged", "normalise")),
        *((f"{name}dtype", c_int) for name in ("", "weight_", "bias_", "correction_")),
        *((name, c_int) for name in ("rounded", "logits_dtype", "weights_dtype")),
        *((name, c_float) for name in ("epsilon", "floor", "scale")),
    )


class GateUpCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("gate", "up")),
        ("panel", Panel),
        *((name, c_int) for name in ("tokens", "width", "stride", "dtype", "activation")),
    )


class ShareCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("part", "shared", "x", "gate")),
        *((name, c_int) for name in ("tokens", "hidden", "dtype", "gate_dtype")),
    )


class HighestCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("logits", "most", "ranks", "ties", "begin", "least")),
        *((name, c_void_p) for name in ("ids", "values", "counts")),
        *((name, c_int) for name in ("rows", "width", "dtype")),
    )
