// Activations as the tile kernels read them: blocks of up to MOST_TOKENS tokens, columns outermost, so that a kernel walks
// one stream front to back whatever tokens an expert has.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/format.h"

namespace dali {

constexpr int MOST_TOKENS = 12;  // of a block, in any variant

// One block, for matrices of `format`.
// Quantized: per group of 32 columns int8 [tokens][32], in `scales` [groups][tokens] the activations' scale, and in `corrections`
// [groups][tokens][1, or 2 for halves] what is taken off: int32 -zero * sum, or where the format has a minimum, float scale * sum.
// Float: float [columns][tokens].
struct Panel {
    int tokens;
    int8_t* quants;
    float* scales;
    int32_t* corrections;
    float* values;
};

// Bytes of the panels of `tokens` tokens, `columns` wide; any split into blocks takes as many.
inline size_t panel_bytes(Format format, int columns, size_t tokens) {
    if (!is_quantized(format)) return tokens * size_t(columns) * 4;
    return tokens * (size_t(columns) + size_t(columns) / GROUP * 4 * (1 + scales_of_group(format)));
}

// The panel of the block of `tokens` tokens that begins at token `first`.
inline Panel panel_at(void* base, Format format, int columns, size_t first, int tokens) {
    char* at = static_cast<char*>(base) + panel_bytes(format, columns, first);
    Panel panel{tokens, nullptr, nullptr, nullptr, nullptr};
    if (!is_quantized(format)) {
        panel.values = reinterpret_cast<float*>(at);
        return panel;
    }
    const size_t groups = columns / GROUP;
    panel.quants = reinterpret_cast<int8_t*>(at);
    panel.scales = reinterpret_cast<float*>(at + size_t(tokens) * columns);
    panel.corrections = reinterpret_cast<int32_t*>(panel.scales + groups * tokens);
    return panel;
}

// How `tokens` tokens are cut into blocks of at most `most`: as few as possible, of sizes that differ by at most one.
struct Blocks {
    int count, tokens;
    Blocks(int tokens, int most) : count((tokens + most - 1) / most), tokens(tokens) {}
    int begin(int block) const { return int(int64_t(tokens) * block / count); }
    int size(int block) const { return begin(block + 1) - begin(block); }
};

}  // namespace dali
