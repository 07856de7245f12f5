#include "recurrent/recurrence.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out
constexpr int MOST_CHANNELS = 128;  // of an item
constexpr float EPSILON = 1e-6f;    // of the norms of queries and keys

// Channels of a strip that one item convolves.
struct Channels {
    const Strip& strip;
    int from, count;  // in the strip
    int first;        // of all
};

std::vector<Channels> split(const std::vector<Strip>& strips) {
    std::vector<Channels> all;
    int first = 0;
    for (const Strip& strip : strips)
        for (int from = 0; from < strip.width; from += MOST_CHANNELS) {
            const int count = std::min(MOST_CHANNELS, strip.width - from);
            all.push_back({strip, from, count, first});
            first += count;
        }
    return all;
}

void convolve_channels(const Convolution& convolution, const Channels& channels, Dtype dtype, const Stretch& stretch, Dtype out_dtype,
                       void* out) {
    const Variant& variant = current_variant();
    const int before = convolution.width - 1, count = channels.count, width = padded(count), all = convolution.channels;
    const size_t item = item_bytes(dtype);
    const auto of_strip = [&](int64_t token) {
        return static_cast<const char*>(channels.strip.from) + ((stretch.row + token) * channels.strip.row_stride + channels.from) * item;
    };
    Workspace workspace;
    const size_t rows = before + stretch.tokens;
    float* inputs = workspace.take<float>(rows * width);
    std::fill_n(inputs, rows * width, 0.0f);
    const char* kept = static_cast<const char*>(stretch.before) + channels.first * item;
    for (int i = 0; i < before; i++) read_row(kept + size_t(i) * all * item, dtype, 0, count, inputs + size_t(i) * width);
    for (int64_t i = 0; i < stretch.tokens; i++) read_row(of_strip(i), dtype, 0, count, inputs + (before + i) * width);
    float* taps = workspace.take<float>(size_t(convolution.width + 1) * width);
    std::fill_n(taps, size_t(convolution.width + 1) * width, 0.0f);
    for (int tap = 0; tap < convolution.width; tap++)
        std::copy_n(convolution.taps + size_t(tap) * all + channels.first, count, taps + size_t(tap) * width);
    float* bias = nullptr;
    if (convolution.bias) {
        bias = taps + size_t(convolution.width) * width;
        std::copy_n(convolution.bias + channels.first, count, bias);
    }
    const float** window = workspace.take<const float*>(convolution.width);
    float* result = workspace.take<float>(width);
    for (int64_t token = 0; token < stretch.tokens; token++) {
        for (int tap = 0; tap < convolution.width; tap++) window[tap] = inputs + (token + tap) * width;
        variant.convolve(window, taps, convolution.width, width, bias, width, result);
        if (convolution.silu) variant.silu(result, width);
        write(result, count, out_dtype, out, size_t(stretch.row + token) * all + channels.first);
    }
    const auto keep = [&](int64_t tokens, void* to) {  // exact: they come from `dtype`
        for (int i = 0; i < before; i++) write(inputs + (tokens + i) * width, count, dtype, to, size_t(i) * all + channels.first);
    };
    for (const Copy& copy : stretch.copies) keep(copy.tokens, copy.to);
    keep(stretch.tokens, stretch.after);
}

// Queries and keys as the rule takes them: divided by their norms, and queries by the root of their width.
void prepare(const DeltaRule& rule, const float* from, float scale, float* to) {
    const Variant& variant = current_variant();
    const int width = rule.key_width;
    std::copy_n(from, width, to);
    if (rule.normalised) scale *= 1.0f / std::sqrt(variant.sum_of_squares(to, width) + EPSILON);
    variant.scale(to, scale, width);
}

// Columns of a head of a sequence's tokens.
struct Item {
    int stretch, head, column;
};

// A copy of `count` columns, fewer than DELTA_COLUMNS, of `rows` rows, with zeros behind them; and back.
float* widened(Workspace& workspace, const float* from, int64_t rows, int64_t stride, int count) {
    float* wide = workspace.take<float>(size_t(rows) * DELTA_COLUMNS);
    std::fill_n(wide, size_t(rows) * DELTA_COLUMNS, 0.0f);
    for (int64_t row = 0; row < rows; row++) std::copy_n(from + row * stride, count, wide + row * DELTA_COLUMNS);
    return wide;
}

void narrow(const float* wide, int64_t rows, int64_t stride, int count, float* to) {
    for (int64_t row = 0; row < rows; row++) std::copy_n(wide + row * DELTA_COLUMNS, count, to + row * stride);
}

// `part`, but of `count` columns.
void narrow_delta_rule(DeltaPart part, int64_t out_stride, int count) {
    Workspace workspace;
    float *out = part.out, *after = part.after;
    const int64_t state_stride = part.state_stride;
    part.value = widened(workspace, part.value, part.tokens, part.value_stride, count);
    part.before = part.after = widened(workspace, part.before, part.key_width, state_stride, count);
    part.out = workspace.take<float>(size_t(part.tokens) * DELTA_COLUMNS);
    part.value_stride = part.out_stride = part.state_stride = DELTA_COLUMNS;
    current_variant().delta_rule(part);
    narrow(part.out, part.tokens, out_stride, count, out);
    narrow(part.after, part.key_width, state_stride, count, after);
}

}  // namespace

void convolve(const Convolution& convolution, const std::vector<Strip>& strips, Dtype dtype, const std::vector<Stretch>& stretches,
              Dtype out_dtype, void* out) {
    const std::vector<Channels> channels = split(strips);
    const int items = int(channels.size() * stretches.size());
    const auto compute = [&](int item) {
        convolve_channels(convolution, channels[item % channels.size()], dtype, stretches[item / channels.size()], out_dtype, out);
    };
    int64_t tokens = 0;
    for (const Stretch& stretch : stretches) tokens += stretch.tokens;
    if (tokens * convolution.channels * (convolution.width + 8) < ALONE) {
        for (int item = 0; item < items; item++) compute(item);
        return;
    }
    Phase phase(items);
    Pool::instance().run([&] { phase.run([&](int item, int) { compute(item); }); });
}

void delta_rule(const DeltaRule& rule, const FloatRows& query, const FloatRows& key, const FloatRows& value, const FloatRows& decay,
                const FloatRows& beta, const std::vector<Stretch>& stretches, float* out) {
    const Variant& variant = current_variant();
    const int keys = rule.key_heads * rule.key_width, values = rule.heads * rule.value_width;
    const int decays = rule.by_channel ? rule.heads * rule.key_width : rule.heads, decay_row = padded(decays);
    std::vector<int64_t> rows;
    std::vector<Item> items;
    for (size_t i = 0; i < stretches.size(); i++) {
        for (int64_t token = 0; token < stretches[i].tokens; token++) rows.push_back(stretches[i].row + token);
        for (int head = 0; head < rule.heads; head++)
            for (int column = 0; column < rule.value_width; column += DELTA_COLUMNS) items.push_back({int(i), head, column});
    }
    const size_t tokens = rows.empty() ? 0 : size_t(*std::max_element(rows.begin(), rows.end()) + 1);
    Workspace workspace;
    float* queries = workspace.take<float>(tokens * keys);
    float* keyed = workspace.take<float>(tokens * keys);
    float* kept = workspace.take<float>(tokens * decay_row);
    const auto prepare_token = [&](int item) {
        const int64_t row = rows[item];
        for (int head = 0; head < rule.key_heads; head++) {
            const int at = head * rule.key_width;
            prepare(rule, query.from + row * query.stride + at, 1.0f / std::sqrt(float(rule.key_width)), queries + row * keys + at);
            prepare(rule, key.from + row * key.stride + at, 1.0f, keyed + row * keys + at);
        }
        std::fill_n(std::copy_n(decay.from + row * decay.stride, decays, kept + row * decay_row), decay_row - decays, 0.0f);
        variant.exponentials(kept + row * decay_row, decay_row);
    };
    const auto compute_tokens = [&](const Item& item, const Stretch& stretch) {
        const int64_t at = stretch.row * keys + item.head / (rule.heads / rule.key_heads) * rule.key_width;
        const int64_t column = item.head * rule.value_width + item.column, state = item.head * rule.key_width * rule.value_width + item.column;
        const DeltaPart part{stretch.tokens, rule.key_width, queries + at, keyed + at, keys,
                             value.from + stretch.row * value.stride + column, beta.from + stretch.row * beta.stride + item.head,
                             kept + stretch.row * decay_row + item.head * (rule.by_channel ? rule.key_width : 1),
                             value.stride, beta.stride, decay_row, rule.by_channel,
                             static_cast<const float*>(stretch.before) + state, static_cast<float*>(stretch.after) + state,
                             rule.value_width, out + stretch.row * values + column, values};
        const int count = std::min(DELTA_COLUMNS, rule.value_width - item.column);
        if (count == DELTA_COLUMNS) variant.delta_rule(part);
        else narrow_delta_rule(part, values, count);
    };
    const auto compute = [&](int number) {
        const Item& item = items[number];
        const Stretch& whole = stretches[item.stretch];
        const int64_t first = item.head * rule.key_width * rule.value_width + item.column;
        Stretch some{whole.row, 0, whole.before, whole.after, {}};
        for (const Copy& copy : whole.copies) {
            const int64_t end = whole.row + copy.tokens;
            some.tokens = end - some.row;
            compute_tokens(item, some);
            const int count = std::min(DELTA_COLUMNS, rule.value_width - item.column);
            for (int i = 0; i < rule.key_width; i++) {
                const int64_t at = first + int64_t(i) * rule.value_width;
                std::copy_n(static_cast<const float*>(whole.after) + at, count, static_cast<float*>(copy.to) + at);
            }
            some = {end, 0, whole.after, whole.after, {}};
        }
        some.tokens = whole.row + whole.tokens - some.row;
        compute_tokens(item, some);
    };
    if (int64_t(rows.size()) * values * rule.key_width < ALONE) {
        for (size_t i = 0; i < rows.size(); i++) prepare_token(int(i));
        for (size_t i = 0; i < items.size(); i++) compute(int(i));
        return;
    }
    Phase prepares(int(rows.size())), rules(int(items.size()));
    Pool::instance().run([&] {
        prepares.run([&](int item, int) { prepare_token(item); });
        rules.run([&](int item, int) { compute(item); });
    });
}

}  // namespace dali
