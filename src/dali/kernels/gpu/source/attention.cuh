// Decoding attention over each sequence's own keys and values, summed as on the CPU (src/native/kernels/attention.h, ops/attention.cpp):
// in parts of 256 keys, a dot product in 16 lanes, values key by key. So the bits are the CPU's, and depend on no neighbour.
#pragma once

#include "panel.cuh"

namespace dali::gpu {

DALI_DEVICE float never() { return from_bits(0xFF800000u); }  // -infinity: the score of what weighs nothing

// One part of a head's keys, and the query.
struct Part {
    const void *keys, *values, *query;
    int64_t key, value, asked;  // where each begins
    int count;
};

// Eight columns of a row from `at` on, of which `left` are its own; zeros in the others. `whole`: rows are of whole sixteens.
template <int dtype, bool whole>
DALI_DEVICE void read_eight(const void* from, int64_t at, int left, float (&to)[8]) {
    if (whole && dtype == DTYPE_F32) {
        const float* floats = static_cast<const float*>(from) + at;
        const uint4 low = load_16(floats), high = load_16(floats + 4);
        const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = from_bits(words[i]);
    } else if (whole && dtype == DTYPE_BF16) {
        const uint4 four = load_16(static_cast<const uint16_t*>(from) + at);
        const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = from_bits(i % 2 ? words[i / 2] & 0xFFFF0000u : words[i / 2] << 16);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = i < left ? read(from, dtype, at + i) : 0.0f;
    }
}

// The sum of 16 products that two lanes hold eight of each, by halves.
DALI_DEVICE float sum_of_pair(float (&eight)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) eight[i] = add(eight[i], from_bits(of_lane_xor(bits_of(eight[i]), 1)));
#pragma unroll
    for (int half = 4; half; half >>= 1)
#pragma unroll
        for (int i = 0; i < half; i++) eight[i] = add(eight[i], eight[i + half]);
    return eight[0];
}

// Scores of all keys, into memory, and the highest. Two lanes a key, two keys at once.
template <int dtype, bool whole>
DALI_DEVICE float score(const AttendCall& call, const Part& part, float* scores) {
    const int lane = lane_of_warp(), side = lane % 2, width = call.key_width;
    float most = never();
    for (int j = 0; j < part.count; j += 32) {
        int64_t row[2];
        float sums[2][8] = {};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int key = j + 16 * k + lane / 2;
            row[k] = part.key + int64_t(key < part.count ? key : part.count - 1) * width;
        }
#pragma unroll 2
        for (int block = 0; block < width; block += 16) {
            const int c = block + 8 * side;
            float query[8], key[2][8];
            read_eight<dtype, whole>(part.query, part.asked + c, width - c, query);
#pragma unroll
            for (int k = 0; k < 2; k++) read_eight<dtype, whole>(part.keys, row[k] + c, width - c, key[k]);
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int i = 0; i < 8; i++) sums[k][i] = add(sums[k][i], mul(key[k][i], query[i]));
        }
        const float first = mul(sum_of_pair(sums[0]), call.scale), second = mul(sum_of_pair(sums[1]), call.scale);
        most = first > most ? first : most;  // those beyond the last key are the last key's
        most = second > most ? second : most;
        const int mine = j + 16 * side + lane / 2;
        if (mine < part.count) scores[mine] = side ? second : first;
    }
    for (int mask = 16; mask; mask >>= 1) {
        const float other = from_bits(of_lane_xor(bits_of(most), mask));
        most = other > most ? other : most;
    }
    return most;
}

// Scores to weights e^(score - most); returns their sum.
DALI_DEVICE float weigh(int count, float most, float* scores) {
    const float from = most == never() ? 0.0f : most;  // then none weighs anything
    SixteenSums total;
    for (int j = 0; j < count; j += 32) {
        const int mine = j + lane_of_warp();
        const float weight = mine < count ? power(sub(scores[mine], from)) : 0.0f;
        if (mine < count) scores[mine] = weight;
        total.add_columns(weight);
    }
    return total.total();
}

constexpr int VALUES = 16;  // keys whose values a lane reads before it adds any

// `n` columns side by side of a row.
template <int dtype, int n>
DALI_DEVICE void read_columns(const void* from, int64_t at, float (&to)[n]) {
    if (dtype == DTYPE_F32 && n == 4) {
        const uint4 words = load_16(static_cast<const float*>(from) + at);
        to[0] = from_bits(words.x), to[1] = from_bits(words.y), to[2 % n] = from_bits(words.z), to[3 % n] = from_bits(words.w);
    } else if (dtype == DTYPE_BF16 && n == 4) {
        const uint2 words = load_8(static_cast<const uint16_t*>(from) + at);
        to[0] = from_bits(words.x << 16), to[1 % n] = from_bits(words.x & 0xFFFF0000u);
        to[2 % n] = from_bits(words.y << 16), to[3 % n] = from_bits(words.y & 0xFFFF0000u);
    } else {
#pragma unroll
        for (int i = 0; i < n; i++) to[i] = read(from, dtype, at + i);
    }
}

// The sums of all values times their weights, in order: n columns a lane.
template <int dtype, int n>
DALI_DEVICE void add_values(const Part& part, int width, const float* weights, float* sums) {
    for (int first = 0; first < width; first += 32 * n) {
        const int column = first + lane_of_warp() * n, from = column < width ? column : 0;
        float sum[n] = {};
        for (int j = 0; j < part.count; j += 32) {
            const int mine = j + lane_of_warp(), left = part.count - j;
            const uint32_t weight = bits_of(mine < part.count ? weights[mine] : 0.0f);
#pragma unroll
            for (int begin = 0; begin < 32; begin += VALUES) {
                float values[VALUES][n];
#pragma unroll
                for (int k = 0; k < VALUES; k++) {
                    const int key = j + (begin + k < left ? begin + k : 0);
                    read_columns<dtype>(part.values, part.value + int64_t(key) * width + from, values[k]);
                }
#pragma unroll
                for (int k = 0; k < VALUES; k++) {
                    const float by = from_bits(of_lane(weight, begin + k));
#pragma unroll
                    for (int i = 0; i < n; i++) sum[i] = begin + k < left ? add(sum[i], mul(values[k][i], by)) : sum[i];
                }
            }
        }
        if (column < width)
            for (int i = 0; i < n; i++) sums[column + i] = sum[i];
    }
}

template <int dtype>
DALI_DEVICE void attend_part(const AttendCall& call, const Part& part, int64_t warp) {
    float *scores = call.scores + warp * PART, *sums = call.sums + warp * call.value_width;
    const float most = call.key_width % 16 ? score<dtype, false>(call, part, scores) : score<dtype, true>(call, part, scores);
    together();
    const float total = weigh(part.count, most, scores);
    together();
    if (call.value_width % 128 == 0) add_values<dtype, 4>(part, call.value_width, scores, sums);
    else add_values<dtype, 1>(part, call.value_width, scores, sums);
    if (lane_of_warp() == 0) call.most[warp] = most, call.total[warp] = total;
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
    const int64_t row = head / (call.heads / call.kv_heads) * kept.capacity + begin;
    const int64_t asked = (int64_t(kept.row) * call.heads + head) * call.key_width;
    const Part of{kept.keys, kept.values, call.query, row * call.key_width, row * call.value_width, asked, count};
    if (call.dtype == DTYPE_F32) attend_part<DTYPE_F32>(call, of, warp);
    else attend_part<DTYPE_BF16>(call, of, warp);  // as on the CPU there is no other
}

// A head's parts together: a warp a (token, head).
DALI_KERNEL merge(DALI_CALL(AttendCall) call) {
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * call.heads) return;
    const KeptToken& kept = call.kept[warp / call.heads];
    const int head = int(warp % call.heads), parts = int((kept.place - kept.first) / PART) + 1;
    const int64_t first = warp * call.parts, row = kept.row;
    float most = call.sinks ? call.sinks[head] : call.most[first];
    for (int i = 0; i < parts; i++) most = most < call.most[first + i] ? call.most[first + i] : most;
    float total = call.sinks ? power(sub(call.sinks[head], most)) : 0.0f;
    for (int i = 0; i < parts; i++) total = add(total, mul(call.total[first + i], power(sub(call.most[first + i], most))));
    for (int c = lane_of_warp(); c - lane_of_warp() < call.value_width; c += 32) {
        const bool within = c < call.value_width;
        float sum = 0;
        for (int i = 0; i < parts; i++) {
            const float part = within ? call.sums[(first + i) * call.value_width + c] : 0.0f;
            const float share = mul(part, div(power(sub(call.most[first + i], most)), total));
            sum = i ? add(sum, share) : share;
        }
        sum = rounded(sum, call.dtype);
        if (call.out && within) write(call.out, call.dtype, (row * call.heads + head) * call.value_width + c, sum);
        if (is_wanted(call.panel)) put_group(call.panel, row, (head * call.value_width + c) / GROUP, sum);
    }
}

}  // namespace dali::gpu
