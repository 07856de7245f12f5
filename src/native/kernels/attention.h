// Attention of a head's queries to a part of its keys.
#pragma once

#include <limits>
#include <type_traits>

#include "kernels/kept_rows.h"
#include "kernels/variant.h"
#include "lanes/floats.h"

namespace dali {

template <class V>
struct AttentionKernels {
    static constexpr int64_t TILE = KEPT_TILE;
    static constexpr float INFINITE = std::numeric_limits<float>::infinity();

    static DALI_INLINE int64_t least(int64_t a, int64_t b) { return b < a ? b : a; }

    // Rows that are read a tile later; the processor's own prefetchers do not follow rows read side by side.
    template <class T>
    static DALI_INLINE void prefetch(const T* rows, int count) {
        for (int i = 0; i < count; i += LINE / int(sizeof(T))) __builtin_prefetch(rows + i, 0, 2);
    }

    // The first `count` columns, fewer than LANES; `whole`: LANES of them.
    template <bool whole, class T>
    static DALI_INLINE void load_columns(const T* row, int count, Floats16& to) {
        if constexpr (whole) load_row(row, to);
        else load_row(row, count, to);
    }

    template <int queries, bool whole, class T>
    static DALI_INLINE void multiply(const T* const* row, const float* query, int query_row, int c, int width, Floats16* products) {
        constexpr int keys = LANES / queries;
        Floats16 key[keys];
#pragma GCC unroll 16
        for (int k = 0; k < keys; k++) load_columns<whole>(row[k] + c, width - c, key[k]);
#pragma GCC unroll 16
        for (int q = 0; q < queries; q++) {
            Floats16 asked;
            load(query + q * query_row + c, asked);
#pragma GCC unroll 16
            for (int k = 0; k < keys; k++) products[q * keys + k] += key[k] * asked;
        }
    }

    // Whether a tile's rows are those of the part, which go on behind it.
    template <class Kept, class T>
    static constexpr bool in_place = std::is_same_v<Kept, T>;

    // Scores of `queries` queries from `first` on with keys [begin, end), a tile, which lie from `tile` on, `row` apart: 16 products at a
    // time.
    template <int queries, class Kept, class T>
    static DALI_INLINE void score(const AttentionPart<Kept>& part, const T* tile, int64_t row_values, int first, int64_t begin, int64_t end) {
        constexpr int keys = LANES / queries;
        const int width = part.key_width, query_row = padded(width);
        const float* query = part.query + first * query_row;
        const int score_row = padded(part.count);
        for (int64_t j = begin; j < end; j += keys) {
            const T* row[keys];
            for (int k = 0; k < keys; k++) row[k] = tile + (least(j + k, end - 1) - begin) * row_values;
            if (in_place<Kept, T> && first == 0 && j + TILE < part.count)
                for (int k = 0; k < keys; k++) prefetch(row[k] + TILE * row_values, width);
            Floats16 products[LANES] = {};
            int c = 0;
            for (; c + LANES <= width; c += LANES) multiply<queries, true>(row, query, query_row, c, width, products);
            if (c < width) multiply<queries, false>(row, query, query_row, c, width, products);
            Floats16 scores;
            sums(products, scores);
            float each[LANES];
            store(scores * part.scale, each);
            float* to = part.scores + first * score_row + j;
            if (j + keys <= end) {
                for (int q = 0; q < queries; q++) std::memcpy(to + q * score_row, each + q * keys, keys * 4);
            } else {
                for (int q = 0; q < queries; q++) std::memcpy(to + q * score_row, each + q * keys, size_t(end - j) * 4);
            }
        }
    }

    // Adds values [begin, end), a tile as of score(), weighted by the scores, to `vectors` vectors of the queries' outputs from column c on.
    template <int queries, int vectors, bool whole, class Kept, class T>
    static DALI_INLINE void add(const AttentionPart<Kept>& part, const T* tile, int64_t row_values, int first, int64_t begin, int64_t end,
                                int c) {
        const int width = part.value_width, out_row = padded(width);
        const int row = padded(part.count);
        const float* scores = part.scores + first * row;
        float* out = part.out + first * out_row + c;
        Floats16 sum[queries][vectors];
#pragma GCC unroll 8
        for (int q = 0; q < queries; q++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) load(out + q * out_row + v * LANES, sum[q][v]);
        for (int64_t j = begin; j < end; j++) {
            const T* from = tile + (j - begin) * row_values;
            if (in_place<Kept, T> && first == 0 && c == 0 && j + TILE < part.count) prefetch(from + TILE * row_values, width);
            Floats16 value[vectors];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) load_columns<whole>(from + c + v * LANES, width - c, value[v]);
#pragma GCC unroll 8
            for (int q = 0; q < queries; q++) {
                const float weight = scores[q * row + j];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++) sum[q][v] += value[v] * weight;
            }
        }
#pragma GCC unroll 8
        for (int q = 0; q < queries; q++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) store(sum[q][v], out + q * out_row + v * LANES);
    }

    template <int queries, class Kept, class T>
    static DALI_INLINE void add(const AttentionPart<Kept>& part, const T* tile, int64_t row, int first, int64_t begin, int64_t end) {
        int c = 0;
        constexpr int most = queries == 4 ? 4 : 8;  // vectors: as many sums as there are registers for
        for (; c + most * LANES <= part.value_width; c += most * LANES) add<queries, most, true>(part, tile, row, first, begin, end, c);
        for (; c + 4 * LANES <= part.value_width; c += 4 * LANES) add<queries, 4, true>(part, tile, row, first, begin, end, c);
        for (; c + LANES <= part.value_width; c += LANES) add<queries, 1, true>(part, tile, row, first, begin, end, c);
        if (c < part.value_width) add<queries, 1, false>(part, tile, row, first, begin, end, c);
    }

    // Scores to weights e^(score - most); returns their sum.
    static DALI_INLINE float weigh(float* scores, int64_t count, float& most) {
        const int row = padded(count);
        for (int64_t j = count; j < row; j++) scores[j] = -INFINITE;
        Floats16 largest = Floats16{} - INFINITE, total{}, s;
        for (int64_t j = 0; j < row; j += LANES) {
            load(scores + j, s);
            largest = s > largest ? s : largest;
        }
        float each[LANES];
        store(largest, each);
        most = each[0];
        for (int i = 1; i < LANES; i++) most = most < each[i] ? each[i] : most;
        const float from = most == -INFINITE ? 0.0f : most;  // then none weighs anything
        for (int64_t j = 0; j < row; j += LANES) {
            load(scores + j, s);
            s -= from;
            exp(s);
            store(s, scores + j);
            total += s;
        }
        return sum(total);
    }

    // Fills part.out with the sums of values weighted by e^(score - most), most and total [group]. keys, values: (begin, end) -> where
    // the rows of that tile lie, `key_row` and `value_row` apart.
    template <class T, class Keys, class Values>
    static DALI_INLINE void attend_tiles(const AttentionPart<T>& part, const Keys& keys, int64_t key_row, const Values& values,
                                         int64_t value_row, float* most, float* total) {
        const int first_rows = int(least(TILE, part.count));
        prefetch(part.keys, int(first_rows * part.key_row));
        prefetch(part.values, int(first_rows * part.value_row));
        for (int64_t begin = 0; begin < part.count; begin += TILE) {
            const int64_t end = least(begin + TILE, part.count);
            const auto* tile = keys(begin, end);
            int first = 0;
            for (; first + 4 <= part.group; first += 4) score<4>(part, tile, key_row, first, begin, end);
            for (; first + 2 <= part.group; first += 2) score<2>(part, tile, key_row, first, begin, end);
            for (; first < part.group; first++) score<1>(part, tile, key_row, first, begin, end);
        }
        // What a query does not see weighs exactly nothing, so it ends as if it had been alone.
        for (int g = 0; part.seen && g < part.group; g++)
            for (int64_t j = part.seen[g]; j < part.count; j++) part.scores[g * padded(part.count) + j] = -INFINITE;
        for (int g = 0; g < part.group; g++) total[g] = weigh(part.scores + g * padded(part.count), part.count, most[g]);
        for (int64_t begin = 0; begin < part.count; begin += TILE) {
            const int64_t end = least(begin + TILE, part.count);
            const auto* tile = values(begin, end);
            int first = 0;
            for (; first + 4 <= part.group; first += 4) add<4>(part, tile, value_row, first, begin, end);
            for (; first + 2 <= part.group; first += 2) add<2>(part, tile, value_row, first, begin, end);
            for (; first < part.group; first++) add<1>(part, tile, value_row, first, begin, end);
        }
    }

    template <class T>
    static void attend_part(const AttentionPart<T>& part, float* most, float* total) {
        const auto keys = [&](int64_t begin, int64_t) { return part.keys + begin * part.key_row; };
        const auto values = [&](int64_t begin, int64_t) { return part.values + begin * part.value_row; };
        attend_tiles(part, keys, part.key_row, values, part.value_row, most, total);
    }

    // A tile becomes floats once, and all queries meet these. read_key, read_value: (row, to).
    template <class T, class Key, class Value>
    static DALI_INLINE void attend_as_floats(const AttentionPart<T>& part, const Key& read_key, const Value& read_value, float* most,
                                             float* total) {
        const auto floats = [&](const T* rows, int64_t row, int width, const auto& read, int64_t begin, int64_t end) {
            for (int64_t j = begin; j < end; j++) {
                if (j + TILE < part.count) prefetch(rows + (j + TILE) * row, int(row));
                read(rows + j * row, part.tile + (j - begin) * width);
            }
            return static_cast<const float*>(part.tile);
        };
        const auto keys = [&](int64_t begin, int64_t end) { return floats(part.keys, part.key_row, part.key_width, read_key, begin, end); };
        const auto values = [&](int64_t begin, int64_t end) {
            return floats(part.values, part.value_row, part.value_width, read_value, begin, end);
        };
        attend_tiles(part, keys, part.key_width, values, part.value_width, most, total);
    }

    static void attend_q8(const AttentionPart<uint8_t>& part, float* most, float* total) {
        const auto key = [&](const uint8_t* row, float* to) { KeptRows<V>::read(row, part.key_width, part.key_width, to); };
        const auto value = [&](const uint8_t* row, float* to) { KeptRows<V>::read(row, part.value_scales, part.value_width, to); };
        attend_as_floats(part, key, value, most, total);
    }

    // `width` values of bfloat16; up to a vector more is written.
    static DALI_INLINE void read_bf16(const uint16_t* row, int width, float* to) {
        Floats16 values;
        int c = 0;
        for (; c + LANES <= width; c += LANES) {
            load_bf16(row + c, values);
            store(values, to + c);
        }
        if (c == width) return;
        load_row(row + c, width - c, values);
        store(values, to + c);
    }

    static void attend_bf16(const AttentionPart<uint16_t>& part, float* most, float* total) {
        constexpr int several = 8;  // queries; fewer read bfloat16 no slower than floats
        if (part.group < several) return attend_part(part, most, total);
        const auto key = [&](const uint16_t* row, float* to) { read_bf16(row, part.key_width, to); };
        const auto value = [&](const uint16_t* row, float* to) { read_bf16(row, part.value_width, to); };
        attend_as_floats(part, key, value, most, total);
    }

    static void put_into(Variant& variant) {
        variant.attend_f32 = attend_part<float>;
        variant.attend_bf16 = attend_bf16;
        variant.attend_q8 = attend_q8;
        variant.keep_q8 = KeptRows<V>::write;
    }
};

}  // namespace dali
