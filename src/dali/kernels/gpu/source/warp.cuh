// What the lanes of a warp do together, and arithmetic whose rounding is said: CUDA's own. Tests compile the kernels for the CPU, with
// DALI_SHIM, where shim.h stands in for all that is here.
#pragma once

#ifdef DALI_SHIM
#include "shim.h"
#else

typedef unsigned char uint8_t;
typedef signed char int8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

#define DALI_DEVICE __device__ __forceinline__
#define DALI_CALL(Call) const __grid_constant__ Call  // read in place: copies of tables would go to local memory
#define DALI_KERNEL extern "C" __global__ void __launch_bounds__(128, 4)

DALI_DEVICE int lane_of_warp() { return threadIdx.x & 31; }
// Counted over the whole launch.
DALI_DEVICE int64_t warp_of_launch() { return int64_t(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); }

// c [16 x 8] += a [16 x 16] b [16 x 8], exact. Lane l has four bytes of row l / 4 of a in a0, of row l / 4 + 8 in a1, from column
// l % 4 * 4 on; of column l / 4 of b, from row l % 4 * 4 on, in b; and of c rows l / 4 (c[0], c[1]) and l / 4 + 8 (c[2], c[3]), columns
// l % 4 * 2 and the next.
DALI_DEVICE void multiply_add(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(b));
#else
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(c[0]), "+r"(c[1]) : "r"(a0), "r"(b));
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(c[2]), "+r"(c[3]) : "r"(a1), "r"(b));
#endif
}
DALI_DEVICE uint32_t of_lane_xor(uint32_t value, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, mask); }
DALI_DEVICE uint32_t of_lane(uint32_t value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
// 16-bit floats, rounded to nearest; as the CPU's but for the bits of NaN.
DALI_DEVICE float from_half(uint16_t half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}
DALI_DEVICE uint16_t to_half(float value) {
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}
// Bit l: whether lane l says so.
DALI_DEVICE uint32_t votes(bool yes) { return __ballot_sync(0xFFFFFFFFu, yes); }
DALI_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
// Of what no kernel that runs meanwhile writes.
DALI_DEVICE uint2 load_8(const void* from) { return __ldg(reinterpret_cast<const uint2*>(from)); }
DALI_DEVICE uint4 load_16(const void* from) { return __ldg(reinterpret_cast<const uint4*>(from)); }
DALI_DEVICE uint4 load_once(const uint8_t* from) { return __ldcs(reinterpret_cast<const uint4*>(from)); }  // weights are read once
// What any lane wrote so far is seen by all lanes from here on.
DALI_DEVICE void together() { __syncwarp(); }
// What all lanes wrote so far is seen by the host before what any lane writes from here on.
DALI_DEVICE void for_the_host() {
    __threadfence_system();
    __syncwarp();
}
DALI_DEVICE uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t which) { return __byte_perm(low, high, which); }

#endif

namespace dali::gpu {

// Of all lanes, exactly: one instruction from compute capability 8.0 on.
DALI_DEVICE uint32_t largest_of_lanes(uint32_t value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xFFFFFFFFu, value);
#else
    for (int mask = 16; mask; mask >>= 1) {
        const uint32_t other = of_lane_xor(value, mask);
        value = other > value ? other : value;
    }
    return value;
#endif
}
DALI_DEVICE int sum_of_lanes(int value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(0xFFFFFFFFu, value);
#else
    for (int mask = 16; mask; mask >>= 1) value += int(of_lane_xor(uint32_t(value), mask));
    return value;
#endif
}

}  // namespace dali::gpu
