// A warp as 32 fibers that meet at every collective: enough of CUDA to run the GPU's kernels on a CPU, one warp after another.
// A lane that diverges from the others at a collective stops the program.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>

#include <ucontext.h>

#define DALI_DEVICE inline
#define DALI_CALL(Call) const Call&
#define DALI_KERNEL static void

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };

namespace shim {

enum class Meeting { none, multiply, exchange, vote, fence };

struct Lane {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool done = false;
    Meeting meeting = Meeting::none;
    uint32_t a0, a1, b, value, received;
    int from;  // the lane whose value is received
    int* c;
    static constexpr size_t STACK = 1 << 17;
};

inline Lane lanes[32];
inline ucontext_t scheduler;
inline int current;
inline int64_t current_warp;
inline std::function<void()> body;

inline void begin() {
    body();
    lanes[current].done = true;
    swapcontext(&lanes[current].context, &scheduler);
}

inline void meet(Meeting meeting) {
    lanes[current].meeting = meeting;
    swapcontext(&lanes[current].context, &scheduler);
}

// m16n8k16 of unsigned times signed bytes, by the fragments' layout in the PTX manual.
inline void multiply() {
    int a[16][16], b[16][8];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            a[l / 4][l % 4 * 4 + i] = lanes[l].a0 >> (8 * i) & 255;
            a[l / 4 + 8][l % 4 * 4 + i] = lanes[l].a1 >> (8 * i) & 255;
            b[l % 4 * 4 + i][l / 4] = int8_t(lanes[l].b >> (8 * i));
        }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 16; k++) lanes[l].c[i] += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
}

inline void run_warp(int64_t warp) {
    current_warp = warp;
    for (Lane& lane : lanes) {
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.get();
        lane.context.uc_stack.ss_size = Lane::STACK;
        lane.context.uc_link = nullptr;
        lane.done = false;
        makecontext(&lane.context, begin, 0);
    }
    while (true) {
        int done = 0;
        for (current = 0; current < 32; current++) {
            lanes[current].meeting = Meeting::none;
            if (!lanes[current].done) swapcontext(&scheduler, &lanes[current].context);
            done += lanes[current].done;
        }
        if (done == 32) return;
        for (const Lane& lane : lanes)
            if (lane.done || lane.meeting != lanes[0].meeting) {
                std::fprintf(stderr, "lanes diverge at a collective of warp %lld\n", static_cast<long long>(warp));
                std::abort();
            }
        if (lanes[0].meeting == Meeting::multiply) multiply();
        else if (lanes[0].meeting == Meeting::vote) {
            uint32_t all = 0;
            for (int l = 0; l < 32; l++) all |= lanes[l].value << l;
            for (Lane& lane : lanes) lane.received = all;
        } else if (lanes[0].meeting == Meeting::exchange)
            for (int l = 0; l < 32; l++) lanes[l].received = lanes[lanes[l].from].value;
    }
}

inline void run(int64_t warps, std::function<void()> kernel) {
    body = std::move(kernel);
    for (int64_t warp = 0; warp < warps; warp++) run_warp(warp);
}

}  // namespace shim

inline int lane_of_warp() { return shim::current; }
inline int64_t warp_of_launch() { return shim::current_warp; }
inline void multiply_add(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    shim::Lane& lane = shim::lanes[shim::current];
    lane.a0 = a0, lane.a1 = a1, lane.b = b, lane.c = c;
    shim::meet(shim::Meeting::multiply);
}
inline uint32_t of_lane(uint32_t value, int from) {
    shim::Lane& lane = shim::lanes[shim::current];
    lane.value = value, lane.from = from;
    shim::meet(shim::Meeting::exchange);
    return shim::lanes[shim::current].received;
}
inline uint32_t of_lane_xor(uint32_t value, int mask) { return of_lane(value, shim::current ^ mask); }
inline uint32_t votes(bool yes) {
    shim::lanes[shim::current].value = yes;
    shim::meet(shim::Meeting::vote);
    return shim::lanes[shim::current].received;
}
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline void together() { shim::meet(shim::Meeting::fence); }
inline void for_the_host() { shim::meet(shim::Meeting::fence); }
inline uint2 load_8(const void* from) {
    uint2 value;
    if (reinterpret_cast<uintptr_t>(from) % 8) std::abort();
    std::memcpy(&value, from, 8);
    return value;
}
inline uint4 load_16(const void* from) {
    uint4 value;
    if (reinterpret_cast<uintptr_t>(from) % 16) std::abort();  // a misaligned address is an error there
    std::memcpy(&value, from, 16);
    return value;
}
inline uint4 load_once(const uint8_t* from) { return load_16(from); }
inline uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t which) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    uint32_t chosen = 0;
    for (int i = 0; i < 4; i++) chosen |= uint32_t(bytes >> (8 * (which >> (4 * i) & 7)) & 255) << (8 * i);
    return chosen;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7FFF;
    if (magnitude >= 0x7C00) return __uint_as_float(sign | 0x7F800000u | (magnitude & 0x3FF) << 13);
    if (magnitude < 0x0400) return __uint_as_float(sign | __float_as_uint(float(magnitude) * 0x1p-24f));
    return __uint_as_float(sign | ((magnitude << 13) + 0x38000000u));
}

inline uint16_t to_half(float value) {
    const uint32_t bits = __float_as_uint(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000u) return uint16_t(sign | 0x7E00);
    if (magnitude >= 0x477FF000u) return uint16_t(sign | 0x7C00);  // rounds beyond 65504
    if (magnitude < 0x38800000u)                                   // denormal: adding 0.5 rounds in the last place
        return uint16_t(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3F000000u));
    return uint16_t(sign | ((magnitude - 0x38000000u + 0xFFF + ((magnitude >> 13) & 1)) >> 13));
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __double2float_rn(double a) { return float(a); }
inline int64_t __double_as_longlong(double value) {
    int64_t bits;
    std::memcpy(&bits, &value, 8);
    return bits;
}
inline double __longlong_as_double(int64_t bits) {
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}
inline float __int2float_rn(int a) { return float(a); }
inline int __float2int_rn(float a) { return std::isnan(a) ? 0 : int(std::nearbyintf(a)); }
