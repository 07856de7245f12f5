// Heads of queries, keys and values as attention wants them, rounded as src/native/model/attention_module.cpp rounds.
#pragma once

#include "norm.cuh"

namespace dali::gpu {

enum Turning { TURN_NONE, TURN_HALVES, TURN_NEIGHBOURS, TURN_UNZIPPED };  // as src/native/model/attention_module.h numbers them

constexpr int PAIRS = 4;  // that a lane reads before it writes any: unzipped in place, that must be all

// A head, where it is and where it goes, which may be the same.
struct Head {
    const void* from;
    int64_t at;
    void* to;
    int64_t there;
    int width;
};

// Columns [begin, width) as they are.
template <int dtype>
DALI_DEVICE void move(const Head& head, int begin) {
    if (head.from == head.to && head.at == head.there) return;
    for (int c = begin + lane_of_warp(); c < head.width; c += 32) {
        if (dtype == DTYPE_F32) static_cast<uint32_t*>(head.to)[head.there + c] = static_cast<const uint32_t*>(head.from)[head.at + c];
        else static_cast<uint16_t*>(head.to)[head.there + c] = static_cast<const uint16_t*>(head.from)[head.at + c];
    }
}

// Two values that turn together, and where they go.
struct Pair {
    float first, second;
    int to_first, to_second;
};

// value * cos + turned * sin.
template <int dtype>
DALI_DEVICE float turned(const TurnCall& call, float value, float cos, float other, float sin) {
    float a = mul(value, cos), b = mul(other, sin);
    if (call.rotary_dtype == dtype) a = rounded(a, dtype), b = rounded(b, dtype);
    return add(a, b);
}

template <int dtype>
DALI_DEVICE void turn_pairs(const TurnCall& call, const Head& head, int64_t row) {
    const int half = call.turned / 2;
    const bool apart = call.turning == TURN_HALVES;  // as they come; the others are neighbours
    for (int first = 0; first < half; first += 32 * PAIRS) {
        Pair pairs[PAIRS];
        float cos[PAIRS][2], sin[PAIRS][2];
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int p = first + 32 * i + lane_of_warp();
            if (p >= half) continue;
            pairs[i].first = read(head.from, dtype, head.at + (apart ? p : 2 * p));
            pairs[i].second = read(head.from, dtype, head.at + (apart ? p + half : 2 * p + 1));
            const bool once = call.turning == TURN_NEIGHBOURS || call.given == half;
            const int64_t angle = row * call.given + p, second = once ? angle : angle + half;
            cos[i][0] = read(call.cos, call.rotary_dtype, angle), cos[i][1] = read(call.cos, call.rotary_dtype, second);
            sin[i][0] = read(call.sin, call.rotary_dtype, angle), sin[i][1] = read(call.sin, call.rotary_dtype, second);
        }
        together();
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int p = first + 32 * i + lane_of_warp();
            if (p >= half) continue;
            const bool beside = call.turning == TURN_NEIGHBOURS;
            const float a = pairs[i].first, b = pairs[i].second;
            write(head.to, dtype, head.there + (beside ? 2 * p : p), turned<dtype>(call, a, cos[i][0], -b, sin[i][0]));
            write(head.to, dtype, head.there + (beside ? 2 * p + 1 : p + half), turned<dtype>(call, b, cos[i][1], a, sin[i][1]));
        }
    }
    move<dtype>(head, call.turned);
}

template <int dtype>
DALI_DEVICE void turn_head(const TurnCall& call, Head head, int64_t row, const NormPart& norm) {
#pragma unroll 1
    for (int step = 0; step < 2; step++) {  // norm and rotation, in either order
        const bool norms = step == (call.norms_follow ? 1 : 0);
        if (norms && !norm.weight) continue;
        if (norms) norm_row<dtype>(head.from, head.at, head.to, head.there, head.width, norm);
        else if (call.turning == TURN_NONE) move<dtype>(head, 0);
        else turn_pairs<dtype>(call, head, row);
        head.from = head.to, head.at = head.there;
        together();
    }
}

template <int dtype>
DALI_DEVICE void scale_values(const TurnCall& call, const Head& head) {
    if (call.value_scale == 1.0f) return move<dtype>(head, 0);
    for (int c = lane_of_warp(); c < head.width; c += 32)
        write(head.to, dtype, head.there + c, mul(read(head.from, dtype, head.at + c), call.value_scale));
}

// A warp a (token, head): its queries', its keys', its values'.
DALI_KERNEL turn(DALI_CALL(TurnCall) call) {
    const int each = call.heads + 2 * call.kv_heads;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * each) return;
    const KeptToken& kept = call.kept[warp / each];
    const int64_t row = kept.row;
    const int head = int(warp % each), kv_head = (head - call.heads) % call.kv_heads, width = call.key_width;
    const auto placed = [&](const void* from, void* to, int of_width) {
        return Head{from, (row * call.kv_heads + kv_head) * of_width, to, (kv_head * kept.capacity + kept.place) * of_width, of_width};
    };
    const bool asks = head < call.heads;
    const int64_t at = (row * call.heads + head) * width;
    const Head turning = asks ? Head{call.query, at, call.query, at, width} : placed(call.keys, kept.keys, width);
    by_dtype(call.dtype, [&](auto dtype) {
        if (head < call.heads + call.kv_heads) turn_head<dtype.value>(call, turning, row, asks ? call.query_norm : call.key_norm);
        else scale_values<dtype.value>(call, placed(call.values, kept.values, call.value_width));
    });
}

}  // namespace dali::gpu
