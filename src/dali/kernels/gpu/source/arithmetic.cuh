// The arithmetic of the CPU's kernels (src/native/kernels/tiles.h), operation by operation, so that both give the same bits.
#pragma once

#include "warp.cuh"

namespace dali::gpu {

DALI_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DALI_DEVICE float sub(float a, float b) { return __fsub_rn(a, b); }
DALI_DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
DALI_DEVICE float div(float a, float b) { return __fdiv_rn(a, b); }
DALI_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DALI_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
DALI_DEVICE float from_bits(uint32_t bits) { return __uint_as_float(bits); }
// NaN stays.
DALI_DEVICE float at_most(float limit, float value) { return limit < value ? limit : value; }
DALI_DEVICE float at_least(float limit, float value) { return limit > value ? limit : value; }

// Element types of activations, as src/native/layout/activations.h numbers them.
enum Dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };

DALI_DEVICE uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000u) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

DALI_DEVICE float read(const void* from, int dtype, int64_t at) {
    if (dtype == DTYPE_F32) return static_cast<const float*>(from)[at];
    const uint16_t word = static_cast<const uint16_t*>(from)[at];
    return dtype == DTYPE_BF16 ? from_bits(uint32_t(word) << 16) : from_half(word);
}

DALI_DEVICE void write(void* to, int dtype, int64_t at, float value) {
    if (dtype == DTYPE_F32) static_cast<float*>(to)[at] = value;
    else static_cast<uint16_t*>(to)[at] = dtype == DTYPE_BF16 ? to_bf16(value) : to_half(value);
}

// As it comes back when it was written.
DALI_DEVICE float rounded(float value, int dtype) {
    if (dtype == DTYPE_F32) return value;
    return dtype == DTYPE_BF16 ? from_bits(uint32_t(to_bf16(value)) << 16) : from_half(to_half(value));
}

// A value's place in an order: the higher, the earlier; NaN first; of equal ones, as +0 and -0 are, the first.
DALI_DEVICE uint32_t rank_of(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0xFFFFFFFFu;
    if ((bits & 0x7FFFFFFFu) == 0) return 0x80000000u;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// `work` for each of these types by itself: what it reads at once is not held up by asking which.
template <int dtype>
struct Of {
    static constexpr int value = dtype;
};
template <class Work>
DALI_DEVICE void by_dtype(int dtype, Work work) {
    if (dtype == DTYPE_F32) work(Of<DTYPE_F32>{});
    else if (dtype == DTYPE_BF16) work(Of<DTYPE_BF16>{});
    else work(Of<DTYPE_F16>{});
}

// Columns 0 to 31, 32 to 63 ... of a row, a lane each, summed as the CPU does (src/native/lanes/floats.h): in 16 sums, then their halves.
struct SixteenSums {
    float sum = 0;
    DALI_DEVICE void add_columns(float own) {
        const float other = from_bits(of_lane_xor(bits_of(own), 16));
        const bool first = lane_of_warp() < 16;
        sum = add(add(sum, first ? own : other), first ? other : own);
    }
    DALI_DEVICE float total() const {
        float all = sum;
        for (int half = 8; half; half >>= 1) all = add(all, from_bits(of_lane_xor(bits_of(all), half)));
        return all;
    }
};

// The nearest value a 16-bit float can hold, were its exponent not bounded above.
DALI_DEVICE float to_half_precision(float value) {
    const uint32_t bits = bits_of(value);
    if (bits < 0x38800000u) return sub(add(value, 0.5f), 0.5f);  // denormal as a half: multiples of 2^-24
    return from_bits((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFFu);
}

DALI_DEVICE float exponential(float x) {
    x = at_least(-88.0f, at_most(88.8f, x));
    const float n = rintf(mul(x, 1.44269504f));
    float r = fma(-n, 0.693359375f, x);
    r = fma(n, 2.12194440e-4f, r);
    float p = 1.0f / 5040;
    p = fma(p, r, 1.0f / 720);
    p = fma(p, r, 1.0f / 120);
    p = fma(p, r, 1.0f / 24);
    p = fma(p, r, 1.0f / 6);
    p = fma(p, r, 0.5f);
    p = fma(p, r, 1.0f);
    p = fma(p, r, 1.0f);
    return mul(p, from_bits(uint32_t(__float2int_rn(n) + 127) << 23));
}

// e^x as routers and attention have it (src/native/lanes/floats.h): no multiply-add is fused.
DALI_DEVICE float power(float x) {
    const float from = x < -87.0f ? -87.0f : x;
    const float n = sub(add(mul(from, 1.44269504f), 12582912.0f), 12582912.0f);
    const float r = add(sub(from, mul(n, 0.693359375f)), mul(n, 2.12194440e-4f));
    float p = add(mul(r, 1.0f / 5040), 1.0f / 720);
    p = add(mul(p, r), 1.0f / 120);
    p = add(mul(p, r), 1.0f / 24);
    p = add(mul(p, r), 1.0f / 6);
    p = add(mul(p, r), 0.5f);
    p = add(mul(p, r), 1.0f);
    p = add(mul(p, r), 1.0f);
    p = mul(p, from_bits(uint32_t(__float2int_rn(n) + 127) << 23));
    return x < -87.0f ? 0.0f : x > 88.0f ? from_bits(0x7F800000u) : p;
}

DALI_DEVICE float sigmoid_of_power(float power) { return div(1.0f, add(1.0f, power)); }

// e^x with the bits of glibc's expf: src/native/model/activation.cpp says how.
DALI_DEVICE float glibc_power(float x) {
    static constexpr uint64_t roots[32] = {
        0x3FF0000000000000, 0x3FF059B0D3158574, 0x3FF0B5586CF9890F, 0x3FF11301D0125B51, 0x3FF172B83C7D517B,
        0x3FF1D4873168B9AA, 0x3FF2387A6E756238, 0x3FF29E9DF51FDEE1, 0x3FF306FE0A31B715, 0x3FF371A7373AA9CB,
        0x3FF3DEA64C123422, 0x3FF44E086061892D, 0x3FF4BFDAD5362A27, 0x3FF5342B569D4F82, 0x3FF5AB07DD485429,
        0x3FF6247EB03A5585, 0x3FF6A09E667F3BCD, 0x3FF71F75E8EC5F74, 0x3FF7A11473EB0187, 0x3FF82589994CCE13,
        0x3FF8ACE5422AA0DB, 0x3FF93737B0CDC5E5, 0x3FF9C49182A3F090, 0x3FFA5503B23E255D, 0x3FFAE89F995AD3AD,
        0x3FFB7F76F2FB5E47, 0x3FFC199BDD85529C, 0x3FFCB720DCEF9069, 0x3FFD5818DCFBA487, 0x3FFDFC97337B9B5F,
        0x3FFEA4AFA2A490DA, 0x3FFF50765B6E4540};
    if (x != x) return x;
    if (x > 88.72283f) return from_bits(0x7F800000u);
    if (x < -104.0f) return 0.0f;
    constexpr double scale = 0x1.71547652b82fep+5, whole = 0x1.8p52;
    const double shifted = __fma_rn(scale, double(x), whole);
    const uint64_t k = uint64_t(__double_as_longlong(shifted));
    const double r = __fma_rn(scale, double(x), -__dsub_rn(shifted, whole));
    const double upper = __fma_rn(0x1.c6af84b915487p-20, r, 0x1.ebfce50fac500p-13);
    const double lower = __fma_rn(0x1.62e42ff0c52d6p-6, r, 1.0);
    const double root = __longlong_as_double(int64_t(roots[k % 32] + ((k - k % 32) << 47)));
    return __double2float_rn(__dmul_rn(__fma_rn(upper, __dmul_rn(r, r), lower), root));
}

DALI_DEVICE float times_sigmoid(float x, float of) { return div(x, add(1.0f, exponential(sub(0.0f, of)))); }

DALI_DEVICE float error_function(float x) {
    constexpr float small[] = {7.853854185668752e-05f, -0.0008010191959328949f, 0.005188327748328447f, -0.026853810995817184f,
                               0.1128358542919159f, -0.3761262595653534f, 0.12837916612625122f};
    constexpr float large[] = {-0.00021018226107116789f, 0.0031831185333430767f, -0.022786090150475502f, 0.10509667545557022f,
                               0.6358463764190674f, 1.128475546836853f};
    const float size = at_least(x, sub(0.0f, x)), square = mul(x, x), most = at_most(4.0f, size);
    float p = small[0], q = large[0];
#pragma unroll
    for (int i = 1; i < 7; i++) p = fma(p, square, small[i]);
#pragma unroll
    for (int i = 1; i < 6; i++) q = fma(q, most, large[i]);
    const float far = sub(1.0f, exponential(sub(0.0f, mul(most, q))));
    return size < 1.0f ? fma(x, p, x) : x < 0.0f ? sub(0.0f, far) : far;
}

// Kinds of activations, as src/native/kernels/variant.h numbers them.
enum Activation { SILU, GELU, GELU_TANH, RELU, RELU2, CLAMPED_SWIGLU, CLAMPED_SILU };

template <int kind>
DALI_DEVICE float act(float x) {
    if (kind == SILU) return times_sigmoid(x, x);
    if (kind == GELU_TANH) {  // 0.5 x (1 + tanh u) = x sigmoid(2 u)
        const float u = fma(mul(mul(x, x), x), 0.044715f, x);
        return times_sigmoid(x, mul(u, 1.5957691216f));
    }
    if (kind == GELU) return mul(mul(0.5f, x), add(1.0f, error_function(mul(x, 0.70710678f))));
    const float y = at_least(0.0f, x);
    return kind == RELU2 ? mul(y, y) : y;
}

template <int kind, bool gated>
DALI_DEVICE float activate(float gate, float up, float alpha, float limit) {
    if (kind == CLAMPED_SWIGLU || kind == CLAMPED_SILU) {
        const float g = at_most(limit, gate);
        const float u = at_least(-limit, at_most(limit, up));
        if (kind == CLAMPED_SILU) return mul(act<SILU>(g), u);
        return mul(add(u, 1.0f), times_sigmoid(g, mul(g, alpha)));
    }
    return gated ? mul(act<kind>(gate), up) : act<kind>(up);
}

}  // namespace dali::gpu
