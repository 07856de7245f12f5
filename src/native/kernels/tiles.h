// The kernels of tiles and of an expert's gate, written once over a set of lanes (lanes/).
//
// Every (row, token) is summed in one fixed order: groups front to back, one multiply-add each; 16-bit floats in two sums,
// even and odd columns. So a result depends on nothing but its row and its token.
#pragma once

#include <cstring>
#include <utility>

#include "kernels/groups.h"
#include "kernels/variant.h"

namespace dali {

template <class V>
struct TileKernels {
    using Floats = typename V::Floats;
    using Ints = typename V::Ints;
    using Line = typename V::Line;

    static constexpr int AHEAD = 24;  // groups (32 columns) the prefetch runs ahead: 6 to 12 KB

    // Into L2: prefetches into L1 wait for the few buffers its misses have, and half the bandwidth is lost.
    static void prefetch(const uint8_t* from, int bytes) {
        for (int at = 0; at < bytes; at += LINE) __builtin_prefetch(from + at, 0, 2);
    }

    // With one token a kernel does little but read, and the processor's own prefetchers keep up with it, a fifth faster than
    // with prefetches of every line, if it reads strictly front to back: a tile's scales before its quants.
    static void touch(const uint8_t* from, size_t bytes) {
        for (size_t at = 0; at < bytes; at += LINE) static_cast<void>(static_cast<const volatile uint8_t*>(from)[at]);
    }

    // But they stop at the end of a page and start anew in the next one: its first lines are asked for in time.
    static constexpr int PAGE = 4096, PAGES_AHEAD = 2, FIRST_LINES = 16;
    static void open_page(const uint8_t* within) {
        prefetch(reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(within) & ~uintptr_t(PAGE - 1)), FIRST_LINES * LINE);
    }
    // Of `bytes` from `from` on, read as far as `at`; `next` is read after them.
    static void open_ahead(const uint8_t* from, int at, int bytes, const uint8_t* next) {
        const int beyond = at + PAGES_AHEAD * PAGE - bytes;
        open_page(beyond < 0 ? from + bytes + beyond : next + beyond);
    }

    // The products of `count` lines and a token's columns.
    template <int zero, int count>
    static Ints products(Ints sum, const Line* lines, const int8_t* x) {
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) sum = V::template dot<zero>(sum, lines[i], x + 4 * i);
        return sum;
    }

    template <Format format, int tokens>
    static void quantized_tile(const TileRun& run, const Panel& panel, float* out) {
        constexpr int zero = zero_point(format), bytes = group_bytes(format), parts = scales_of_group(format);
        constexpr bool corrected = zero != 0 && !(V::centred && zero == 128);
        constexpr int scale_bytes = block_scale_bytes(format) * GROUP / block_columns(format);
        const int groups = run.columns / GROUP;
        const uint8_t* quants = run.tile + run.plane_bytes;
        const uint8_t* next_quants = run.next + run.plane_bytes;
        Floats sums[tokens];
        for (int m = 0; m < tokens; m++) sums[m] = V::zero();
        constexpr bool in_order = tokens <= 2 && !is_decoded(format);
        if constexpr (in_order) {
            open_page(run.tile + PAGES_AHEAD * PAGE);
            touch(run.tile, run.plane_bytes);
        }
        for (int g = 0; g < groups; g++) {
            if constexpr (in_order) {
                if (g * bytes % PAGE < bytes) open_ahead(quants, g * bytes, groups * bytes, run.next);
            } else if constexpr (!is_decoded(format)) {  // those lie in the cache
                const int ahead = g + AHEAD;
                const bool within = ahead < groups;
                prefetch(within ? quants + ahead * bytes : next_quants + (ahead - groups) * bytes, bytes);
                prefetch(within ? run.tile + ahead * scale_bytes : run.next + (ahead - groups) * scale_bytes, scale_bytes);
            }
            Line lines[8];
            Groups<V>::template read<format>(quants + g * bytes, run.tile, g, lines);
            Floats scale[parts], minimum[parts];
            Groups<V>::template read_scales<format>(quants + g * bytes, run.tile, g, scale, minimum);
            const int8_t* x = panel.quants + size_t(g) * tokens * GROUP;
            const float* scales = panel.scales + size_t(g) * tokens;
            const int32_t* corrections = panel.corrections + size_t(g) * tokens * parts;
#pragma GCC unroll 12
            for (int m = 0; m < tokens; m++, corrections += parts, x += GROUP) {
#pragma GCC unroll 2
                for (int part = 0; part < parts; part++) {
                    Ints sum = V::set_ints(corrected ? corrections[part] : 0);
                    if constexpr (parts == 2) {
                        sum = products<zero, 4>(sum, lines + 4 * part, x + 16 * part);
                    } else if constexpr (tokens < 4) {  // two chains: with few tokens nothing else hides their latency
                        sum = V::add_ints(products<zero, 4>(sum, lines, x), products<zero, 4>(V::set_ints(0), lines + 4, x + 16));
                    } else {
                        sum = products<zero, 8>(sum, lines, x);
                    }
                    sums[m] = V::fma(V::to_floats(sum), V::mul(scale[part], V::set(scales[m])), sums[m]);
                    if constexpr (traits(format).minimum) {
                        float taken;
                        std::memcpy(&taken, corrections + part, 4);
                        sums[m] = V::fnma(V::set(taken), minimum[part], sums[m]);
                    }
                }
            }
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
        for (int g = 0; g < groups; g++, scales += parts * TILE_ROWS, quants += group_bytes(decoded)) {
            const uint8_t* from = tile + plane_bytes + size_t(g) * bytes;
            prefetch(from + AHEAD * bytes, bytes);  // the next tile comes after this one
            Line lines[8];
            Groups<V>::template read<format>(from, tile, g, lines);
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
                values_of<decoded>(buffer, plane, block, zero_point(format), V::transposed, out);
                plane_bytes += block / GROUP * group_bytes(format) - block_scale_bytes(format);
            }
        } else {
            values_of<format>(tile, plane_bytes, columns, zero_point(format), false, out);
        }
    }

    template <Format format>
    static void values_of(const uint8_t* tile, size_t plane_bytes, int columns, int zero, bool transposed, float* out) {
        constexpr int parts = scales_of_group(format);
        for (int g = 0; g < columns / GROUP; g++) {
            Line lines[8];
            const uint8_t* quants = tile + plane_bytes + size_t(g) * group_bytes(format);
            Groups<V>::template read<format>(quants, tile, g, lines);
            Floats scale[parts], minimum[parts];
            Groups<V>::template read_scales<format>(quants, tile, g, scale, minimum);
            for (int c = 0; c < GROUP; c++) {
                const int part = c * parts / GROUP;
                const Floats quant = transposed ? V::byte_of(lines[c / 16 * 4 + c % 4], c / 4 % 4) : V::byte_of(lines[c / 4], c % 4);
                Floats value = V::mul(V::sub(quant, V::set(float(zero))), scale[part]);
                if constexpr (traits(format).minimum) value = V::sub(value, minimum[part]);
                V::store(out + (size_t(g) * GROUP + c) * TILE_ROWS, value);
            }
        }
    }

    template <Format format, int tokens>
    static void float_tile(const TileRun& run, const Panel& panel, float* out) {
        constexpr int step = format == Format::f32 ? 1 : 2;  // columns a line
        constexpr int far = AHEAD * 4;                       // lines
        const int lines = run.columns / step;
        Floats sums[tokens][step];
        for (int m = 0; m < tokens; m++)
            for (int i = 0; i < step; i++) sums[m][i] = V::zero();
        for (int line = 0; line < lines; line++) {
            if constexpr (tokens == 1) {
                if (line * LINE % PAGE == 0) open_ahead(run.tile, line * LINE, lines * LINE, run.next);
            } else {
                const int ahead = line + far;
                prefetch(ahead < lines ? run.tile + ahead * LINE : run.next + (ahead - lines) * LINE, LINE);
            }
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

    // The nearest value a 16-bit float can hold, were its exponent not bounded above.
    static float to_half_precision(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (bits < 0x38800000u) return (value + 0.5f) - 0.5f;  // denormal as a half: multiples of 2^-24
        bits = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFFu;
        std::memcpy(&value, &bits, 4);
        return value;
    }

    // Byte 4 b + k of both halves to 4 k + b: the order of Coded's lines where bytes are looked up.
    static void transpose(int8_t* quants) {
        int8_t before[GROUP];
        std::memcpy(before, quants, GROUP);
        for (int i = 0; i < GROUP; i++) quants[i] = before[(i & 16) | (i % 4 * 4 + i / 4 % 4)];
    }

    static void fill(const float* values, Format format, const Panel& panel, int group, int token) {
        const size_t tokens = panel.tokens;
        if (!is_quantized(format)) {
            float* to = panel.values + size_t(group) * GROUP * tokens + token;
            for (int i = 0; i < GROUP; i++) to[i * tokens] = values[i];
            return;
        }
        int8_t* quants = panel.quants + (group * tokens + token) * GROUP;
        const uint32_t bits = V::largest_magnitude(values);
        float largest, scale;
        std::memcpy(&largest, &bits, 4);
        int32_t sum = 0;
        if (bits >= 0x7F800000u) {  // infinity or NaN: no integers stand for it; 0 * NaN carries it on
            std::memset(quants, 0, GROUP);
            scale = __builtin_nanf("");
        } else {
            const float factor = 127.0f / largest;
            scale = to_half_precision(largest / 127.0f);  // as GGML stores it: the same file gives the same numbers
            sum = V::round_group(values, __builtin_isinf(factor) ? 0.0f : factor, quants);  // zeros, or denormals
        }
        if (V::transposed && is_grid(format)) transpose(quants);
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
        static_assert(V::most_tokens <= MOST_TOKENS);
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
