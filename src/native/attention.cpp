#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "floats.h"
#include "pool.h"

namespace dali {

namespace {

constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out

template <class T>
DALI_INLINE void add_scaled(const T* row, float weight, float* to, int width) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        Floats16 a, b;
        load_row(row + i, a);
        load(to + i, b);
        b += a * weight;
        store(b, to + i);
    }
    for (; i < width; i++) to[i] += one(row + i) * weight;
}

// The heads that share one head of keys. query [group][key width] as float, scores [group][keys], out [group][value width].
template <class T>
DALI_INLINE void attend_group(const AttentionCall& call, const T* keys, const T* values, int64_t count, int group,
                              const float* query, const float* sinks, float* scores, float* out) {
    for (int64_t j = 0; j < count; j++)
        for (int g = 0; g < group; g++)
            scores[g * count + j] = dot(keys + j * call.key_width, query + g * call.key_width, call.key_width) * call.scale;
    for (int g = 0; g < group; g++) {
        float* mine = scores + g * count;
        float most = sinks ? sinks[g] : -std::numeric_limits<float>::infinity();
        for (int64_t j = 0; j < count; j++) most = std::max(most, mine[j]);
        float total = sinks ? std::exp(sinks[g] - most) : 0.0f;
        for (int64_t j = 0; j < count; j++) {
            mine[j] = std::exp(mine[j] - most);
            total += mine[j];
        }
        const float share = 1.0f / total;
        for (int64_t j = 0; j < count; j++) mine[j] *= share;
    }
    std::fill(out, out + group * call.value_width, 0.0f);
    for (int64_t j = 0; j < count; j++)
        for (int g = 0; g < group; g++)
            add_scaled(values + j * call.value_width, scores[g * count + j], out + g * call.value_width, call.value_width);
}

DALI_CLONES void attend_f32(const AttentionCall& call, const void* keys, const void* values, int64_t count, int group,
                            const float* query, const float* sinks, float* scores, float* out) {
    attend_group(call, static_cast<const float*>(keys), static_cast<const float*>(values), count, group, query, sinks, scores, out);
}
DALI_CLONES void attend_bf16(const AttentionCall& call, const void* keys, const void* values, int64_t count, int group,
                             const float* query, const float* sinks, float* scores, float* out) {
    attend_group(call, static_cast<const uint16_t*>(keys), static_cast<const uint16_t*>(values), count, group, query, sinks, scores, out);
}

const char* at(const Rows& rows, int64_t row, int64_t head, Dtype dtype) {
    return static_cast<const char*>(rows.from) + (row * rows.row_stride + head * rows.head_stride) * int64_t(item_bytes(dtype));
}

void attend_head(const AttentionCall& call, const DecodingToken& token, int head) {
    const size_t item = item_bytes(call.dtype);
    const int group = call.heads / call.kv_heads;
    char* keys = token.keys + head * token.capacity * call.key_width * item;
    char* values = token.values + head * token.capacity * call.value_width * item;
    std::memcpy(keys + token.place * call.key_width * item, at(call.keys, token.row, head, call.dtype), call.key_width * item);
    std::memcpy(values + token.place * call.value_width * item, at(call.values, token.row, head, call.dtype),
                call.value_width * item);

    const int64_t count = token.place + 1 - token.first;
    static thread_local std::vector<float> query, scores, out;
    query.resize(size_t(group) * call.key_width);
    scores.resize(size_t(group) * count);
    out.resize(size_t(group) * call.value_width);
    for (int g = 0; g < group; g++)
        read_row(at(call.query, token.row, head * group + g, call.dtype), call.dtype, 0, call.key_width,
                 query.data() + size_t(g) * call.key_width);
    const float* sinks = call.sinks ? call.sinks + head * group : nullptr;
    const char* first_key = keys + token.first * call.key_width * item;
    const char* first_value = values + token.first * call.value_width * item;
    (call.dtype == Dtype::f32 ? attend_f32 : attend_bf16)(call, first_key, first_value, count, group, query.data(), sinks,
                                                          scores.data(), out.data());
    const size_t to = (size_t(token.row) * call.heads + size_t(head) * group) * call.value_width;
    write(out.data(), group * call.value_width, call.dtype, call.out, to);
}

}  // namespace

void attend(const AttentionCall& call, const std::vector<DecodingToken>& tokens) {
    const int count = int(tokens.size()) * call.kv_heads;
    int64_t work = 0;
    for (const DecodingToken& token : tokens)
        work += (token.place + 1 - token.first) * call.heads * (call.key_width + call.value_width);
    const auto item = [&](int i) { attend_head(call, tokens[i / call.kv_heads], i % call.kv_heads); };
    if (work < ALONE) {
        for (int i = 0; i < count; i++) item(i);
        return;
    }
    Phase heads(count);
    Pool::instance().run([&] { heads.run([&](int i, int) { item(i); }); });
}

}  // namespace dali
