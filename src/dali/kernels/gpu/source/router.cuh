// Routers, step by step as the CPU's (src/native/ops/route.cpp): which experts each token takes, and with what weights.
#pragma once

#include "norm.cuh"

namespace dali::gpu {

enum Score { SCORE_SOFTMAX, SCORE_SIGMOID };  // as src/native/ops/route.h numbers them

// weight [at ...] times x [from ...], summed as dot() of src/native/lanes/floats.h: 32 sums, then their halves, then what is beyond
// whole 32s, one by one.
template <int dtype, int weight_dtype>
DALI_DEVICE float dot(const void* weight, int64_t at, const void* x, int64_t from, int width) {
    const int whole = width / 32 * 32;
    float sum = 0, rest = 0;
    each_column(width, width, [&](int column) { return mul(read(weight, weight_dtype, at + column), read(x, dtype, from + column)); },
                [&](int column, float product) {
                    if (column < whole) sum = add(sum, product);
                    else rest = product;
                });
    for (int half = 16; half; half >>= 1) sum = add(sum, from_bits(of_lane_xor(bits_of(sum), half)));
    for (int i = whole; i < width; i++) sum = add(sum, from_bits(of_lane(bits_of(rest), i - whole)));
    return sum;
}

DALI_DEVICE float dot(const void* weight, int weight_dtype, int64_t at, const void* x, int dtype, int64_t from, int width) {
    float product = 0;
    by_dtype(dtype, [&](auto of) {
        if (weight_dtype == DTYPE_F32) product = dot<of.value, DTYPE_F32>(weight, at, x, from, width);
        else product = dot<of.value, DTYPE_BF16>(weight, at, x, from, width);
    });
    return product;
}

// A warp a (token, expert).
DALI_KERNEL route_products(DALI_CALL(RouteCall) call) {
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * call.experts) return;
    const int64_t token = warp / call.experts, expert = warp % call.experts;
    const float product = dot(call.weight, call.weight_dtype, expert * call.hidden, call.x, call.dtype, token * call.hidden, call.hidden);
    if (lane_of_warp() == 0) call.products[warp] = product;
}

struct Ranked {
    uint32_t rank;
    int at;
};
DALI_DEVICE bool comes_before(const Ranked& a, const Ranked& b) { return a.rank != b.rank ? a.rank > b.rank : a.at < b.at; }
constexpr int NOWHERE = 0x7FFFFFFF;
// Before all and after all.
DALI_DEVICE Ranked before_all() { return {0xFFFFFFFFu, -1}; }
DALI_DEVICE Ranked after_all() { return {0, NOWHERE}; }

// The first of values[begin], [begin + step] ... that comes after `last`.
DALI_DEVICE Ranked next_of(const float* values, int begin, int count, int step, const Ranked& last) {
    Ranked best = after_all();
    for (int i = begin; i < count; i += step) {
        const Ranked one{rank_of(values[i]), i};
        if (comes_before(last, one) && comes_before(one, best)) best = one;
    }
    return best;
}

// The first of all lanes' candidates.
DALI_DEVICE Ranked first_of_lanes(const Ranked& mine) {
    const uint32_t rank = largest_of_lanes(mine.rank);
    return {rank, int(~largest_of_lanes(mine.rank == rank ? ~uint32_t(mine.at) : 0))};
}

// value(0) + value(1) + ..., in order; each lane asks for its own.
template <class Value>
DALI_DEVICE float ordered_sum(int count, Value value) {
    float total = 0;
    for (int first = 0; first < count; first += 32) {
        const int mine = first + lane_of_warp();
        const uint32_t own = bits_of(mine < count ? value(mine) : 0.0f);
#pragma unroll 8
        for (int i = 0; i < 32; i++) {
            const float one = from_bits(of_lane(own, i));
            total = first + i < count ? add(total, one) : total;
        }
    }
    return total;
}

// What a token's warp works on.
struct Choice {
    float *logits, *scores, *ranks, *weights;
    int64_t* ids;
};

// The logits' maximum as the CPU finds it: a NaN counts where it is the first.
DALI_DEVICE float most_of(const float* logits, int count) {
    float most = logits[0];
    for (int i = lane_of_warp(); i < count; i += 32) most = most < logits[i] ? logits[i] : most;
    for (int mask = 16; mask; mask >>= 1) {
        const float other = from_bits(of_lane_xor(bits_of(most), mask));
        most = most < other ? other : most;
    }
    return most;
}

DALI_DEVICE void score_all(const RouteCall& call, const Choice& to) {
    if (call.score == SCORE_SIGMOID) {
        for (int i = lane_of_warp(); i < call.experts; i += 32) to.scores[i] = sigmoid_of_power(power(-to.logits[i]));
        return;
    }
    const float most = most_of(to.logits, call.experts);
    const float total = ordered_sum(call.experts, [&](int i) { return to.scores[i] = power(sub(to.logits[i], most)); });
    for (int i = lane_of_warp(); i < call.experts; i += 32) to.scores[i] = div(to.scores[i], total);
}

// Leaves the best groups in the running; a lane a group.
DALI_DEVICE void keep_groups(const RouteCall& call, float* ranks) {
    if (call.groups == call.kept_groups) return;
    const int size = call.experts / call.groups, judged = call.judged < size ? call.judged : size, group = lane_of_warp();
    Ranked mine = after_all();
    if (group < call.groups) {
        const int begin = group * size;
        Ranked one = next_of(ranks, begin, begin + size, 1, before_all());
        float worth = ranks[one.at];
        for (int i = 1; i < judged; i++) {
            one = next_of(ranks, begin, begin + size, 1, one);
            worth = add(worth, ranks[one.at]);
        }
        mine = {rank_of(worth), group};
    }
    int better = 0;
    for (int i = 0; i < call.groups; i++) {
        const Ranked other{of_lane(mine.rank, i), i};
        better += comes_before(other, mine);
    }
    if (group < call.groups && better >= call.kept_groups)
        for (int i = 0; i < size; i++) ranks[group * size + i] = from_bits(0xFF800000u);  // -infinity
    together();
}

DALI_DEVICE void choose(const RouteCall& call, const Choice& to) {
    Ranked last = before_all();
    for (int i = 0; i < call.top_k; i++) {
        last = first_of_lanes(next_of(to.ranks, lane_of_warp(), call.experts, 32, last));
        if (lane_of_warp() == 0) to.ids[i] = last.at;
    }
    together();
}

DALI_DEVICE void put_weights(const RouteCall& call, const Choice& to, bool plain) {
    const int among = plain && !call.normalise ? call.experts : call.top_k;
    const float most = plain ? to.logits[to.ids[0]] : 0.0f;
    const auto worth = [&](int64_t expert) { return plain ? power(sub(to.logits[expert], most)) : to.scores[expert]; };
    float total = ordered_sum(among, [&](int i) { return worth(among == call.top_k ? to.ids[i] : i); });
    if (!plain) total = add(total < call.floor ? call.floor : total, call.epsilon);
    for (int i = lane_of_warp(); i < call.top_k; i += 32) {
        float weight = worth(to.ids[i]);
        if (plain || call.normalise) weight = div(weight, total);
        to.weights[i] = rounded(mul(weight, call.scale), call.weights_dtype);
    }
}

// A warp a token.
DALI_KERNEL route_choose(DALI_CALL(RouteCall) call) {
    const int64_t token = warp_of_launch();
    if (token >= call.tokens) return;
    const int64_t first = token * call.experts, chosen = token * call.top_k;
    const Choice to{call.products + first, call.scores + first, call.ranks + first, call.weights + chosen, call.ids + chosen};
    for (int i = lane_of_warp(); i < call.experts; i += 32) {
        float logit = to.logits[i];
        if (call.bias) logit = add(logit, read(call.bias, call.bias_dtype, i));
        to.logits[i] = rounded(logit, call.rounded);
    }
    together();
    // Of a plain softmax the logits tell the order, and often the chosen ones alone their weights.
    const bool plain = call.score == SCORE_SOFTMAX && !call.correction && call.groups == call.kept_groups && call.epsilon == 0.0f &&
                       call.floor == 0.0f;
    if (!plain) score_all(call, to);
    const float* by = plain || call.by_logit ? to.logits : to.scores;
    for (int i = lane_of_warp(); i < call.experts; i += 32)  // each lane's own scores
        to.ranks[i] = call.correction ? add(by[i], read(call.correction, call.correction_dtype, i)) : by[i];
    together();
    keep_groups(call, to.ranks);
    choose(call, to);
    put_weights(call, to, plain);
}

}  // namespace dali::gpu
