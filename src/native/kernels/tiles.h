// The kernels of tiles and of an expert's gate, written once over a set of lanes (lanes/).
//
// Every (row, token) is summed in one fixed order: groups front to back, one multiply-add each; 16-bit floats in two sums,
// even and odd columns. So a result depends on nothing but its row and its token.
#pragma once

#include <cstring>
#include <utility>

#include "kernels/groups.h"
#include "kernels/quantize.h"
#include "kernels/variant.h"

namespace dali {

template <class V>
struct TileKernels {
    using Floats = typename V::Floats;
    using Ints = typename V::Ints;
    using Line = typename V::Line;

    // The prefetch runs this many bytes ahead, and by as many as a tile's scales take, which are read beside its quants.
    static constexpr int AHEAD = 6144;

    static void prefetch(const uint8_t* from, int bytes) {
        for (int at = 0; at < bytes; at += LINE) __builtin_prefetch(from + at);
    }

    // Asks for the next bytes in the run of this tile and the next, a group's share at a time: one stream in the order of addresses. With
    // one of quants and one of scales a core of Zen 5 read at half the rate.
    template <Format format>
    static void ask(const TileRun& run, int group, int tile_bytes) {
        constexpr int share = group_bytes(format) + block_scale_bytes(format) * GROUP / block_columns(format);
        const int then = group * share + int(run.plane_bytes) + AHEAD;
        prefetch(then < tile_bytes ? run.tile + then : run.next + (then - tile_bytes), share);
    }

    // How many of `count` vectors' products are added at once. With few tokens in two chains: nothing else hides their latency.
    template <Format format, int tokens>
    static constexpr int run_of(int count) {
        int run = count;
        while (run > V::most_added(most_quant(format), zero_point(format))) run /= 2;
        return tokens < 4 && run == 8 ? 4 : run;
    }
    template <int... formats>
    static constexpr bool products_fit(std::integer_sequence<int, formats...>) {
        return ((!is_quantized(Format(formats)) || V::most_added(most_quant(Format(formats)), zero_point(Format(formats))) > 0) && ...);
    }

    // sums[m] of tokens `from` to `to`: the products of a part of a group, all of it or a half, with token m's columns, and what corrects
    // them. Integers: in any order they come to the same.
    template <Format format, int tokens, int part, int from, int to, int... turns>
    static void multiply(const uint8_t* quants, const Line* lines, const int8_t* x, const int32_t* corrections, Ints* sums,
                         std::integer_sequence<int, turns...>) {
        constexpr int parts = scales_of_group(format), count = 8 / parts, zero = zero_point(format), run = run_of<format, tokens>(count);
        constexpr bool corrected = zero != 0 && !(V::centred && zero == 128);
        typename V::Products products[tokens];
        const auto correction = [&](int m) { return corrected ? corrections[m * parts + part] : 0; };
        const auto add = [&](auto turn) __attribute__((always_inline)) {
            constexpr int i = parts == 2 ? part * count + turn : turn / 2 + turn % 2 * 4;  // two of a line in turn
            const auto weights = V::template weights<zero>(Groups<V>::template vector_of<format, i>(quants, lines));
#pragma GCC unroll 12
            for (int m = from; m < to; m++) {
                if constexpr (turn % run == 0) products[m] = V::open(turn == 0 ? correction(m) : 0);
                products[m] = V::template dot<zero>(products[m], weights, x + m * GROUP + 4 * i);
                if constexpr (turn % run == run - 1) {
                    const Ints sum = V::close(products[m], turn < run ? correction(m) : 0);
                    sums[m] = turn < run ? sum : V::add_ints(sums[m], sum);
                }
            }
        };
        (add(std::integral_constant<int, turns>{}), ...);
    }

    template <Format format, int tokens, int part>
    static void add_part(const uint8_t* quants, const Line* lines, const Panel& panel, int group, Floats scale, Floats minimum, Floats* sums) {
        constexpr int parts = scales_of_group(format);
        const int8_t* x = panel.quants + size_t(group) * tokens * GROUP;
        const float* scales = panel.scales + size_t(group) * tokens;
        if constexpr (part > 0) asm("" : "+r"(scales));  // read again: kept for both halves they would take the sums' registers
        const int32_t* corrections = panel.corrections + size_t(group) * tokens * parts;
        Ints whole[tokens];
        constexpr auto turns = std::make_integer_sequence<int, 8 / parts>{};
        constexpr int once = parts == 2 && tokens > 4 ? (tokens + 1) / 2 : tokens;  // halves take registers beside the tokens' sums
        multiply<format, tokens, part, 0, once>(quants, lines, x, corrections, whole, turns);
        if constexpr (once < tokens) multiply<format, tokens, part, once, tokens>(quants, lines, x, corrections, whole, turns);
#pragma GCC unroll 12
        for (int m = 0; m < tokens; m++) {
            sums[m] = V::fma(V::to_floats(whole[m]), V::mul(scale, V::set(scales[m])), sums[m]);
            if constexpr (traits(format).minimum) {
                float taken;
                std::memcpy(&taken, corrections + m * parts + part, 4);
                sums[m] = V::fnma(V::set(taken), minimum, sums[m]);
            }
        }
    }

    template <Format format, int tokens>
    static void quantized_tile(const TileRun& run, const Panel& panel, float* out) {
        constexpr int parts = scales_of_group(format);
        const int groups = run.columns / GROUP, tile_bytes = int(run.plane_bytes) + groups * group_bytes(format);
        Floats sums[tokens];
        for (int m = 0; m < tokens; m++) sums[m] = V::zero();
        typename Groups<V>::template Block<format> prepared;
        for (int g = 0; g < groups; g++) {
            if constexpr (!is_decoded(format)) ask<format>(run, g, tile_bytes);  // those lie in the cache
            const uint8_t* quants = run.tile + run.plane_bytes + g * group_bytes(format);
            Line lines[8];
            Groups<V>::template prepare<format>(quants, run.tile, g, prepared);
            if constexpr (is_grid(format)) Groups<V>::template read<format>(prepared, quants, run.tile, g, lines);
            Floats scale[2], minimum[2];
            Groups<V>::template read_scales<format>(quants, run.tile, g, scale, minimum);
            add_part<format, tokens, 0>(quants, lines, panel, g, scale[0], minimum[0], sums);
            if constexpr (parts == 2) add_part<format, tokens, 1>(quants, lines, panel, g, scale[1], minimum[1], sums);
        }
        for (int m = 0; m < tokens; m++) V::store(out + m * TILE_ROWS, sums[m]);
    }

    template <Format format>
    static void decode(const uint8_t* tile, size_t plane_bytes, int columns, uint8_t* to) {
        constexpr int bytes = group_bytes(format), parts = scales_of_group(format);
        constexpr Format decoded = decoded_format(format);
        const int groups = columns / GROUP;
        float* scales = reinterpret_cast<float*>(to);
        uint8_t* quants = to + round_up(size_t(groups) * block_scale_bytes(decoded), 128);
        typename Groups<V>::template Block<format> prepared;
        for (int g = 0; g < groups; g++, scales += parts * TILE_ROWS, quants += group_bytes(decoded)) {
            const uint8_t* from = tile + plane_bytes + size_t(g) * bytes;
            prefetch(from + AHEAD, bytes);  // the next tile comes after this one
            Line lines[8];
            Groups<V>::template prepare<format>(from, tile, g, prepared);
            Groups<V>::template read<format>(prepared, from, tile, g, lines);
            Floats scale[parts];
            Groups<V>::template read_scales<format>(from, tile, g, scale, nullptr);
            for (int i = 0; i < 8; i++) V::store_line(quants + LINE * i, lines[i]);
            for (int part = 0; part < parts; part++) V::store(scales + TILE_ROWS * part, scale[part]);
        }
    }

    // What a tile's bytes stand for: out [columns][16 rows].
    template <Format format>
    static void values(const uint8_t* tile, size_t plane_bytes, int columns, float* out) {
        if constexpr (is_grid(format)) {
            constexpr Format decoded = decoded_format(format);
            constexpr int block = block_columns(format), plane = block / GROUP * block_scale_bytes(decoded);
            alignas(64) uint8_t buffer[plane + block / GROUP * group_bytes(decoded)];
            for (int at = 0; at < columns; at += block, tile += block_scale_bytes(format), out += block * TILE_ROWS) {
                decode<format>(tile, plane_bytes, block, buffer);
                values_of<decoded>(buffer, plane, block, format, out);
                plane_bytes += block / GROUP * group_bytes(format) - block_scale_bytes(format);
            }
        } else {
            values_of<format>(tile, plane_bytes, columns, format, out);
        }
    }

    // `as`: whose zero point and order of columns the lines have.
    template <Format format>
    static void values_of(const uint8_t* tile, size_t plane_bytes, int columns, Format as, float* out) {
        constexpr int parts = scales_of_group(format);
        for (int g = 0; g < columns / GROUP; g++) {
            Line lines[8];
            const uint8_t* quants = tile + plane_bytes + size_t(g) * group_bytes(format);
            Groups<V>::template read<format>({}, quants, tile, g, lines);
            Floats scale[parts], minimum[parts];
            Groups<V>::template read_scales<format>(quants, tile, g, scale, minimum);
            for (int i = 0; i < GROUP; i++) {
                const int part = i * parts / GROUP, column = column_of(as, V::transposed, i / 4, i % 4);
                Floats value = V::mul(V::sub(V::byte_of(lines[i / 4], i % 4), V::set(float(zero_point(as)))), scale[part]);
                if constexpr (traits(format).minimum) value = V::sub(value, minimum[part]);
                V::store(out + (size_t(g) * GROUP + column) * TILE_ROWS, value);
            }
        }
    }

    template <Format format, int tokens>
    static void float_tile(const TileRun& run, const Panel& panel, float* out) {
        constexpr int step = format == Format::f32 ? 1 : 2;  // columns a line
        constexpr int far = AHEAD / LINE;                    // lines
        const int lines = run.columns / step;
        Floats sums[tokens][step];
        for (int m = 0; m < tokens; m++)
            for (int i = 0; i < step; i++) sums[m][i] = V::zero();
        for (int line = 0; line < lines; line++) {
            const int ahead = line + far;
            prefetch(ahead < lines ? run.tile + ahead * LINE : run.next + (ahead - lines) * LINE, LINE);
            Floats weights[step];
            if constexpr (format == Format::f32) {
                weights[0] = V::load(reinterpret_cast<const float*>(run.tile + line * LINE));
            } else if constexpr (format == Format::bf16) {
                V::from_bf16(V::load_line(run.tile + line * LINE), weights[0], weights[1]);
            } else {
                V::from_f16(V::load_line(run.tile + line * LINE), weights[0], weights[1]);
            }
            const float* x = panel.values + size_t(line) * step * tokens;
#pragma GCC unroll 12
            for (int m = 0; m < tokens; m++)
                for (int i = 0; i < step; i++) sums[m][i] = V::fma(weights[i], V::set(x[i * tokens + m]), sums[m][i]);
        }
        for (int m = 0; m < tokens; m++)
            V::store(out + m * TILE_ROWS, step == 1 ? sums[m][0] : V::add(sums[m][0], sums[m][step - 1]));
    }

    template <Format format, int tokens>
    static constexpr TileKernel tile() {
        if constexpr (is_quantized(format)) return quantized_tile<format, tokens>;
        else return float_tile<format, tokens>;
    }

    // Into the order of Coded's lines.
    static void transpose(Format format, int8_t* quants) {
        int8_t before[GROUP];
        std::memcpy(before, quants, GROUP);
        for (int i = 0; i < GROUP; i++) quants[i] = before[column_of(format, V::transposed, i / 4, i % 4)];
    }

    static void fill(const float* values, Format format, const Panel& panel, int group, int token) {
        const size_t tokens = panel.tokens;
        if (!is_quantized(format)) {
            float* to = panel.values + size_t(group) * GROUP * tokens + token;
            for (int i = 0; i < GROUP; i++) to[i * tokens] = values[i];
            return;
        }
        int8_t* quants = panel.quants + (group * tokens + token) * GROUP;
        float scale;
        const int32_t sum = Quantizer<V>::group(values, quants, scale);
        if (V::transposed && is_grid(format)) transpose(format, quants);
        panel.scales[group * tokens + token] = scale;
        int32_t* corrections = panel.corrections + (group * tokens + token) * scales_of_group(format);
        const auto correct = [&](int32_t& correction, int32_t of) {
            const float taken = scale * float(of);
            if (traits(format).minimum) std::memcpy(&correction, &taken, 4);
            else correction = -zero_point(format) * of;
        };
        if (!traits(format).halves) return correct(corrections[0], sum);  // transposed, too, either half is for itself
        int32_t first = 0;
        for (int i = 0; i < GROUP / 2; i++) first += quants[i];
        correct(corrections[0], first);
        correct(corrections[1], sum - first);
    }

    // Within 2 units in the last place; infinity from 88.4 on, nearly 0 from -88 down.
    static Floats exp(Floats x) {
        x = V::at_least(V::set(-88.0f), V::at_most(V::set(88.8f), x));
        const Floats n = V::round(V::mul(x, V::set(1.44269504f)));
        Floats r = V::fnma(n, V::set(0.693359375f), x);
        r = V::fnma(n, V::set(-2.12194440e-4f), r);
        Floats p = V::set(1.0f / 5040);
        p = V::fma(p, r, V::set(1.0f / 720));
        p = V::fma(p, r, V::set(1.0f / 120));
        p = V::fma(p, r, V::set(1.0f / 24));
        p = V::fma(p, r, V::set(1.0f / 6));
        p = V::fma(p, r, V::set(0.5f));
        p = V::fma(p, r, V::set(1.0f));
        p = V::fma(p, r, V::set(1.0f));
        return V::mul(p, V::power_of_two(n));
    }
    static Floats times_sigmoid(Floats x, Floats of) {
        return V::div(x, V::add(V::set(1.0f), exp(V::sub(V::zero(), of))));
    }

    // Within 1.2 units in the last place: x + x P(x^2) up to 1, beyond it 1 - e^(-x Q(x)), which is 1 from 3.9 on. P and Q are the
    // polynomials of least error, of the quotient and of the result.
    static Floats erf(Floats x) {
        constexpr float small[] = {7.853854185668752e-05f, -0.0008010191959328949f, 0.005188327748328447f, -0.026853810995817184f,
                                   0.1128358542919159f, -0.3761262595653534f, 0.12837916612625122f};
        constexpr float large[] = {-0.00021018226107116789f, 0.0031831185333430767f, -0.022786090150475502f, 0.10509667545557022f,
                                   0.6358463764190674f, 1.128475546836853f};
        const Floats one = V::set(1.0f), zero = V::zero(), size = V::at_least(x, V::sub(zero, x));
        const Floats square = V::mul(x, x), most = V::at_most(V::set(4.0f), size);
        Floats p = V::set(small[0]), q = V::set(large[0]);
        for (int i = 1; i < 7; i++) p = V::fma(p, square, V::set(small[i]));
        for (int i = 1; i < 6; i++) q = V::fma(q, most, V::set(large[i]));
        const Floats far = V::sub(one, exp(V::sub(zero, V::mul(most, q))));
        return V::where_less(size, one, V::fma(x, p, x), V::where_less(x, zero, V::sub(zero, far), far));
    }

    static Floats act(Activation kind, Floats x) {
        switch (kind) {
            case Activation::silu: return times_sigmoid(x, x);
            case Activation::gelu_tanh: {  // 0.5 x (1 + tanh u) = x sigmoid(2 u)
                const Floats cubed = V::mul(V::mul(x, x), x);
                const Floats u = V::fma(cubed, V::set(0.044715f), x);
                return times_sigmoid(x, V::mul(u, V::set(1.5957691216f)));
            }
            case Activation::relu: return V::at_least(V::zero(), x);
            case Activation::relu2: {
                const Floats y = V::at_least(V::zero(), x);
                return V::mul(y, y);
            }
            default:  // gelu
                return V::mul(V::mul(V::set(0.5f), x), V::add(V::set(1.0f), erf(V::mul(x, V::set(0.70710678f)))));
        }
    }

    static void activate(const Gate& gate_kind, const float* gate, const float* up, float* out, int count) {
        for (int i = 0; i < count; i += 16) {
            Floats u = V::load(up + i);
            if (gate_kind.kind >= Activation::clamped_swiglu) {
                const Floats limit = V::set(gate_kind.limit);
                const Floats g = V::at_most(limit, V::load(gate + i));
                u = V::at_least(V::set(-gate_kind.limit), V::at_most(limit, u));
                if (gate_kind.kind == Activation::clamped_silu) {
                    V::store(out + i, V::mul(act(Activation::silu, g), u));
                    continue;
                }
                const Floats gated = times_sigmoid(g, V::mul(g, V::set(gate_kind.alpha)));
                V::store(out + i, V::mul(V::add(u, V::set(1.0f)), gated));
            } else if (gate) {
                V::store(out + i, V::mul(act(gate_kind.kind, V::load(gate + i)), u));
            } else {
                V::store(out + i, act(gate_kind.kind, u));
            }
        }
    }

    static void weighted_sum(const float* rows, const float* weights, int count, int columns, float* out) {
        int c = 0;
        for (; c + 16 <= columns; c += 16) {
            Floats sum = V::mul(V::load(rows + c), V::set(weights[0]));
            for (int i = 1; i < count; i++)
                sum = V::add(sum, V::mul(V::load(rows + size_t(i) * columns + c), V::set(weights[i])));
            V::store(out + c, sum);
        }
        for (; c < columns; c++) {
            float sum = rows[c] * weights[0];
            for (int i = 1; i < count; i++) sum = sum + rows[size_t(i) * columns + c] * weights[i];
            out[c] = sum;
        }
    }

    template <Format format, int... tokens>
    static void fill_row(Variant& variant, std::integer_sequence<int, tokens...>) {
        ((variant.tiles[int(format)][tokens + 1] = tile<format, tokens + 1>()), ...);
    }

    template <Format... formats>
    static void put(Variant& variant) {
        (fill_row<formats>(variant, std::make_integer_sequence<int, V::most_tokens>{}), ...);
        ((variant.values[int(formats)] = values<formats>), ...);
    }

    template <Format... formats>
    static void put_codes(Variant& variant) {
        (fill_row<formats>(variant, std::make_integer_sequence<int, V::few_tokens>{}), ...);
        ((variant.decode[int(formats)] = decode<formats>), ...);
        ((variant.values[int(formats)] = values<formats>), ...);
    }

    static void put_coded(Variant& variant) {
        put_codes<Format::iq3_s, Format::iq3_xxs, Format::iq2_s, Format::iq2_xs, Format::iq2_xxs, Format::iq1_s, Format::iq1_m>(variant);
        variant.few_tokens = V::few_tokens;
        variant.fill = fill;
    }

    static void put_into(Variant& variant) {
        variant.most_tokens = V::most_tokens;
        constexpr auto upto = std::make_integer_sequence<int, V::most_tokens>{};
        static_assert(V::most_tokens <= MOST_TOKENS && products_fit(std::make_integer_sequence<int, FORMATS>{}));
        fill_row<Format::f32>(variant, upto);
        fill_row<Format::f16>(variant, upto);
        fill_row<Format::bf16>(variant, upto);
        put<Format::w8, Format::w4, Format::mxfp4, Format::q4k, Format::q4_1, Format::q5_0, Format::q5_1, Format::q5k, Format::q6k,
            Format::q3k, Format::q2k, Format::iq4_nl, Format::iq4_xs, Format::nvfp4, Format::tq2_0>(variant);
        put_coded(variant);
        fill_row<Format::decoded>(variant, upto);
        fill_row<Format::decoded_halves>(variant, upto);
        variant.activate = activate;
        variant.weighted_sum = weighted_sum;
    }
};

}  // namespace dali
