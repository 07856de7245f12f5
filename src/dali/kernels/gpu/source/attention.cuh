// Decoding attention over each sequence's own keys and values, summed as on the CPU (src/native/kernels/attention.h, ops/attention.cpp):
// in parts of 1024 keys, a dot product in 16 lanes, values key by key. So the bits are the CPU's, and depend on no neighbour.
#pragma once

#include "arithmetic.cuh"
#include "calls.h"

namespace dali::gpu {

// The sum of 16 lanes' values, by halves; lanes 16 on do the same as those 16 before them.
DALI_DEVICE float sum_of_lanes(float value) {
    for (int half = 8; half; half >>= 1) value = add(value, from_bits(of_lane_xor(bits_of(value), half)));
    return value;
}

// As src/native/lanes/floats.h has it: no multiply-add is fused.
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
    return x < -87.0f ? 0.0f : p;
}

DALI_DEVICE void copy_row(const void* from, int64_t at, void* to, int64_t there, int width, int dtype) {
    for (int c = lane_of_warp(); c < width; c += 32) {
        if (dtype == DTYPE_F32) static_cast<uint32_t*>(to)[there + c] = static_cast<const uint32_t*>(from)[at + c];
        else static_cast<uint16_t*>(to)[there + c] = static_cast<const uint16_t*>(from)[at + c];
    }
}

// The new tokens' keys and values into their places: a warp a (token, kv head).
DALI_KERNEL keep(DALI_CALL(AttendCall) call) {
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * call.kv_heads) return;
    const KeptToken& kept = call.kept[warp / call.kv_heads];
    const int64_t head = warp % call.kv_heads, from = int64_t(kept.row) * call.kv_heads + head, to = head * kept.capacity + kept.place;
    copy_row(call.keys, from * call.key_width, kept.keys, to * call.key_width, call.key_width, call.dtype);
    copy_row(call.values, from * call.value_width, kept.values, to * call.value_width, call.value_width, call.dtype);
}

// One part of a head's keys: a warp a (token, head, part).
DALI_KERNEL attend(DALI_CALL(AttendCall) call) {
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * call.heads * call.parts) return;
    const int part = int(warp % call.parts), head = int(warp / call.parts % call.heads);
    const KeptToken& kept = call.kept[warp / call.parts / call.heads];
    const int64_t begin = kept.first + int64_t(part) * PART;
    const int count = int(begin + PART < kept.place + 1 ? PART : kept.place + 1 - begin);
    if (count <= 0) return;
    const int lane = lane_of_warp(), half = lane / 16, column = lane % 16;
    const int64_t kv_head = head / (call.heads / call.kv_heads) * kept.capacity + begin;
    const int64_t query = (int64_t(kept.row) * call.heads + head) * call.key_width;
    float* scores = call.scores + warp * PART;

    float most = from_bits(0xFF800000u);  // -infinity
    for (int j = 0; j < count; j += 2) {  // each half of the warp a key
        const int key = j + half < count ? j + half : count - 1;
        float product = 0;
        for (int c = 0; c < call.key_width; c += 16) {
            const bool within = c + column < call.key_width;
            const float a = within ? read(kept.keys, call.dtype, (kv_head + key) * call.key_width + c + column) : 0.0f;
            const float b = within ? read(call.query, call.dtype, query + c + column) : 0.0f;
            product = add(product, mul(a, b));
        }
        const float score = mul(sum_of_lanes(product), call.scale);
        if (column == 0 && j + half < count) scores[key] = score;
        most = score > most ? score : most;
    }
    const float other = from_bits(of_lane_xor(bits_of(most), 16));
    most = other > most ? other : most;
    together();

    const float from = most == from_bits(0xFF800000u) ? 0.0f : most;  // then none weighs anything
    float total = 0;
    for (int j = 0; j < count; j += 16) {
        const float weight = j + column < count ? power(sub(scores[j + column], from)) : 0.0f;
        total = add(total, weight);
        together();
        if (half == 0 && j + column < count) scores[j + column] = weight;
        together();
    }
    total = sum_of_lanes(total);
    float* sums = call.sums + warp * call.value_width;
    for (int c = lane; c < call.value_width; c += 32) {
        float sum = 0;
        for (int j = 0; j < count; j++)
            sum = add(sum, mul(read(kept.values, call.dtype, (kv_head + j) * call.value_width + c), scores[j]));
        sums[c] = sum;
    }
    if (lane == 0) call.most[warp] = most, call.total[warp] = total;
}

// A head's parts together: a warp a (token, head).
DALI_KERNEL merge(DALI_CALL(AttendCall) call) {
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * call.heads) return;
    const KeptToken& kept = call.kept[warp / call.heads];
    const int head = int(warp % call.heads), parts = int((kept.place - kept.first) / PART) + 1;
    const int64_t first = warp * call.parts;
    float most = call.sinks ? call.sinks[head] : call.most[first];
    for (int i = 0; i < parts; i++) most = most < call.most[first + i] ? call.most[first + i] : most;
    float total = call.sinks ? power(sub(call.sinks[head], most)) : 0.0f;
    for (int i = 0; i < parts; i++) total = add(total, mul(call.total[first + i], power(sub(call.most[first + i], most))));
    for (int c = lane_of_warp(); c < call.value_width; c += 32) {
        float sum = 0;
        for (int i = 0; i < parts; i++) {
            const float part = mul(call.sums[(first + i) * call.value_width + c], div(power(sub(call.most[first + i], most)), total));
            sum = i ? add(sum, part) : part;
        }
        write(call.out, call.dtype, (int64_t(kept.row) * call.heads + head) * call.value_width + c, sum);
    }
}

}  // namespace dali::gpu
